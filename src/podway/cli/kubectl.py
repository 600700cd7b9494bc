"""`kubectl podway`: kubectl runs the program `kubectl-podway` for it. The cluster is that of the kubeconfig."""

import os

from podway.cli.main import main
from podway.store.open import KUBERNETES


def run() -> None:
    """Run a command on the cluster of KUBECONFIG or ~/.kube/config, unless another store is named."""
    os.environ.setdefault("PODWAY_STORE", f"{KUBERNETES}:")
    main(prog_name="kubectl podway")
