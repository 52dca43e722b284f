"""For all tests."""

import signal

from hypothesis import settings

# One commit, one verdict: the examples are drawn anew only where a test changes.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

# A shell without job control starts what it puts in the background with Ctrl-C ignored, and children inherit that.
# Tests that interrupt a run would then wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
