"""etcd as the store, for clusters without a Kubernetes API: where it is (`access`), requests and streams
(`client`), where objects are in it (`keys`), and the store made of these (`store`)."""
