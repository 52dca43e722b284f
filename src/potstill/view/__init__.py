"""`potstill view`: a run as pages in a browser, served to this machine alone.

`site` holds what pages are made of, `sections` a file each, `server` the door. What is drawn lives in `reporting`,
which draws the frozen report from the same templates.
"""
