"""Real signals to small processes: what is noted, what raises, what ends the process, what forked ones do."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from training.stop_signals import SAVE_LEVEL, Stopped, StopSignals

START = """
    import os, signal, sys, time
    from training.stop_signals import StopSignals
    def send(number, seconds=0.3):
        os.kill(os.getpid(), number)
        time.sleep(seconds)
"""


def run(body: str) -> subprocess.CompletedProcess[str]:
    program = textwrap.dedent(START) + textwrap.dedent(body)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_before_training_a_signal_raises_and_in_training_it_is_noted(number):
    with StopSignals() as signals, pytest.raises(Stopped) as raised:
        os.kill(os.getpid(), number)
    assert raised.value.exit_code == 128 + number and str(raised.value) == f"stopped by {number.name}"
    with StopSignals() as signals:
        signals.begin_training()
        os.kill(os.getpid(), number)
        assert signals.take_level() == signals.take_level() == 128 + number
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler)


def test_a_request_to_save_is_taken_once_and_never_raises():
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.take_level() == SAVE_LEVEL and signals.take_level() == 0


def test_the_exit_code_can_be_set():
    signals = StopSignals()
    signals.exit_code = 85
    assert signals.stopped(143).exit_code == 85 and signals.stopped(143).signal_number == signal.SIGTERM


def test_a_second_interrupt_ends_the_process_unless_it_is_the_same_key_stroke():
    done = run("""
        with StopSignals() as signals:
            signals.begin_training()
            send(signal.SIGINT), send(signal.SIGINT)
            print("continues", flush=True)
            time.sleep(1)
            send(signal.SIGINT, 5)
            print("still here")
    """)
    assert (done.returncode, done.stdout) == (130, "continues\n")


def test_a_main_thread_that_waits_for_another_rank_does_not_keep_the_process():
    done = run("""
        import ctypes, threading
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with StopSignals():
            ctypes.CDLL(None).sleep(20), ctypes.CDLL(None).sleep(20)  # no instruction of Python until then
    """)
    assert done.returncode == 143


def test_a_process_whose_launcher_is_gone_ends_whatever_it_does():
    done = run("""
        from training import stop_signals
        stop_signals.ORPHAN_SECONDS = 0.5
        with StopSignals() as signals:
            signals.begin_training()
            signals.lose_launcher()
            time.sleep(20)
    """)
    assert done.returncode == 143


def test_forked_processes_ignore_what_the_terminal_sends_to_all():
    done = run("""
        with StopSignals() as signals:
            signals.begin_training()
            child = os.fork()
            if not child:
                send(signal.SIGHUP), send(signal.SIGINT), send(signal.SIGUSR1)
                os._exit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), signals.level)
    """)
    assert done.stdout == "7 0\n", done.stderr


def test_it_ends_while_a_forked_process_stays():
    done = run("""
        with StopSignals() as signals:
            child = os.fork()
            if not child:
                time.sleep(20)
                os._exit(0)
        print("over", flush=True)
        os.kill(child, signal.SIGTERM)  # which ends it
        os.waitpid(child, 0)
    """)
    assert (done.returncode, done.stdout) == (0, "over\n")


def test_what_is_ignored_at_the_start_stays_ignored():
    done = run("""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopSignals() as signals:
            send(signal.SIGHUP)
            print(signals.level)
    """)
    assert done.stdout == "0\n"
