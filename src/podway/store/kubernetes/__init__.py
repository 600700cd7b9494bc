"""The Kubernetes API as the store: where it is and who asks (`access`), requests and streams (`client`), what
Podway's kinds are there (`translation`), and the store made of these (`store`)."""
