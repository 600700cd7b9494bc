"""`python -m podway.identity`: an order on standard input, the certificate on standard output (see apart)."""

import sys

import msgspec

from podway.identity import certificates
from podway.identity.orders import Order

order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
sys.stdout.buffer.write(msgspec.json.encode(certificates.fulfil(order)))
