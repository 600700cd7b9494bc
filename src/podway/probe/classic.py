"""Classic BPF: programs that the kernel runs on what a socket would receive.

Loads are relative to the network header (SKF_NET_OFF), which makes a program independent of the kind of device.

Source: the kernel's Documentation/networking/filter.rst and include/uapi/linux/{filter,bpf_common}.h.
"""

import array
import socket
import struct

import msgspec

_SO_ATTACH_FILTER = 26

LD_BYTE, LD_HALF, LD_WORD = 0x30, 0x28, 0x20
LD_BYTE_X, LD_HALF_X, LD_WORD_X = 0x50, 0x48, 0x40
LD_MEM, LDX_MEM, ST, STX = 0x60, 0x61, 0x02, 0x03
LD_IMM, LDX_IMM = 0x00, 0x01
JA, JEQ, JGT, JGE, JSET = 0x05, 0x15, 0x25, 0x35, 0x45
ADD, ADD_X, AND, LSH, RSH = 0x04, 0x0C, 0x54, 0x64, 0x74
TAX, TXA = 0x07, 0x87
RET = 0x06

NET = 0xFFF00000
"""SKF_NET_OFF, -0x100000: offsets from here count from the network header."""
ETHERTYPE = 0xFFFFF000
"""SKF_AD_OFF + SKF_AD_PROTOCOL."""
WHOLE = 0x40000


class _Step(msgspec.Struct, frozen=True):
    """One instruction; jump targets are labels, an empty one being the next instruction."""

    code: int
    value: int = 0
    if_true: str = ""
    if_false: str = ""


class Program:
    """A cBPF program under construction: instructions, and labels to jump to (forwards only)."""

    def __init__(self) -> None:
        self._steps: list[_Step] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        """Give the next instruction a name."""
        self._labels[name] = len(self._steps)

    def do(self, code: int, value: int = 0) -> None:
        """Add an instruction."""
        self._steps.append(_Step(code, value))

    def goto(self, label: str) -> None:
        """Go on at a label, however far."""
        self._steps.append(_Step(JA, 0, label))

    def when(self, value: int, then: str = "", otherwise: str = "", *, code: int = JEQ) -> None:
        """Compare the accumulator, and go on at labels that are at most 255 instructions away."""
        self._steps.append(_Step(code, value, then, otherwise))

    def add_to_x(self, number: int) -> None:
        """Add a number to the index register."""
        self.do(TXA)
        self.do(ADD, number)
        self.do(TAX)

    def __len__(self) -> int:
        return len(self._steps)

    def assemble(self) -> bytes:
        """Return the program as an array of struct sock_filter."""

        def distance(here: int, label: str) -> int:
            return self._labels[label] - here - 1 if label else 0

        code = bytearray()
        for here, step in enumerate(self._steps):
            if step.code == JA:
                code += struct.pack("=HBBI", JA, 0, 0, distance(here, step.if_true))
            else:
                jumps = distance(here, step.if_true), distance(here, step.if_false)
                code += struct.pack("=HBBI", step.code, *jumps, step.value)
        return bytes(code)


def attach(sock: socket.socket, program: bytes) -> None:
    """Attach a filter to a socket. Raises OSError."""
    instructions = array.array("B", program)
    address, _ = instructions.buffer_info()
    # struct sock_fprog: the number of instructions, and an aligned pointer to them.
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program) // 8, address))
