"""`python -m podway.identity`: an order on standard input, the certificate on standard output (see apart)."""

import sys

import msgspec

from podway.identity import certificates
from podway.identity.orders import Order, RequestOrder

order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order | RequestOrder)
made = certificates.make_request() if isinstance(order, RequestOrder) else certificates.fulfil(order)
sys.stdout.buffer.write(msgspec.json.encode(made))
