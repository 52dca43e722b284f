"""Two models answer one question, and somebody who does not know which is which says whose answer is better.

`votes` keeps what was said and tells standings, `battles` has the answers written, `rounds` lets a page wait for them,
`terminal` asks on the terminal; the pages are a section of `view`.
"""
