"""For all tests: signals as a shell in the foreground hands them on."""

import signal

# A job in the background, or under nohup, ignores them, and so would all that it starts.
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)
