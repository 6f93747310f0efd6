#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A command in a terminal of its own, and somebody at its keys: on_terminal.py STEP… -- COMMAND…

A step is `see=TEXT`, which waits until the terminal was sent this text behind what was seen before, or `type=KEYS`, in
which Python's escapes are read. Afterwards the command must end by itself, and leave the terminal's settings as they
were. What the terminal was sent goes to stdout; the exit code is the command's, 99 if something was waited for in vain,
98 if the settings differ.
"""
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time

PATIENCE = 60


class Terminal:
    def __init__(self, command):
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
            os.execvp(command[0], command)
        self.settings = termios.tcgetattr(self.master)
        self.sent = b""
        self.seen = 0

    def read(self):
        """Whether there is still somebody at the other end."""
        if not select.select([self.master], [], [], 0.1)[0]:
            return True
        try:
            got = os.read(self.master, 65536)
        except OSError:
            return False
        self.sent += got
        return bool(got)

    def see(self, text):
        end = time.monotonic() + PATIENCE
        while self.sent.find(text, self.seen) < 0:
            if not self.read() or time.monotonic() > end:
                self.give_up(f"{text!r} was waited for in vain")
        self.seen = self.sent.find(text, self.seen) + len(text)

    def give_up(self, why):
        os.kill(self.pid, signal.SIGKILL)
        sys.stdout.buffer.write(self.sent)
        print(f"\n{why}")
        sys.exit(99)

    def leave(self):
        end = time.monotonic() + PATIENCE
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            self.read()
            if time.monotonic() > end:
                self.give_up("the command does not end")
        while select.select([self.master], [], [], 0)[0] and self.read():
            pass
        same = termios.tcgetattr(self.master) == self.settings
        sys.stdout.buffer.write(self.sent)
        return os.waitstatus_to_exitcode(status) if same else 98


def main():
    at = sys.argv.index("--")
    terminal = Terminal(sys.argv[at + 1 :])
    for step in sys.argv[1:at]:
        kind, text = step.split("=", 1)
        text = text.encode().decode("unicode_escape").encode("latin-1") if kind == "type" else text.encode()
        if kind == "type":
            os.write(terminal.master, text)
        else:
            terminal.see(text)
    sys.exit(terminal.leave() & 255)


main()
