"""Where labs keep their files."""

from pathlib import Path

LABS = Path("/run/podway/lab")
"""One directory for each lab. Gone after a reboot, as the namespaces are."""

DATA = Path("/var/lib/podway/lab")
"""One directory for each lab that is a Kubernetes: what its nodes have on their disks, which may be much."""

DEFAULT_LAB = "lab"


def lab_dir(name: str) -> Path:
    """Return the directory of the lab of this name."""
    return LABS / name


def data_dir(name: str) -> Path:
    """Return what the nodes of a lab that is a Kubernetes have for disks."""
    return DATA / name


def control_dir(name: str) -> Path:
    """Return where the control plane of a lab that is a Kubernetes keeps its files; others have none."""
    return data_dir(name) / "control"


def admin_config(name: str) -> Path:
    """Return the kubeconfig of one who may do everything in a lab that is a Kubernetes; others have none."""
    return control_dir(name) / "pki" / "admin.kubeconfig"


def etcd_dir(name: str) -> Path:
    """Return where the etcd of a lab that has one as its store keeps its files; others have none."""
    return lab_dir(name) / "etcd"


def store_file(name: str) -> Path:
    """Return the file that says the URL of a lab's store that is no SQLite file; others have none."""
    return lab_dir(name) / "store.url"


def lab_store(name: str) -> str:
    """Return the URL of the lab's store."""
    try:
        return store_file(name).read_text().strip()
    except FileNotFoundError:
        return f"sqlite://{lab_dir(name) / 'store.db'}"
