"""Two models answer one question, and somebody who does not know which is which says whose answer is better.

`votes` keeps what was said and tells standings, `battles` has the answers written, `terminal` and `pages` ask.
"""
