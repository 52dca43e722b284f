"""For all tests."""

import signal

# A shell without job control starts what it puts in the background with Ctrl-C ignored, and children inherit that.
# Tests that interrupt a run would then wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
