"""`podway controller`: what one has to do for a whole cluster."""

import click

from podway.cli.help import examples
from podway.cli.options import GlobalOptions, check_endpoint, log_level_option, metrics_option, store_option
from podway.store.open import check_url


@click.command(
    epilog=examples(
        "podway controller --store kubernetes:",
        "podway controller --store kubernetes:///etc/kubernetes/admin.conf --log-level debug",
        "podway controller --store etcd://192.0.2.10:2379/podway",
    )
)
@store_option(help="The cluster's store, such as kubernetes: in a pod, or etcd://HOST:2379.")
@click.option(
    "--name",
    default="",
    metavar="NAME",
    help="What it calls itself among several controllers.  [default: the machine's name and a number]",
)
@metrics_option
@click.option(
    "--relay",
    default="",
    metavar="ADDRESS:PORT",
    callback=check_endpoint,
    help="Ask agents for those who reach the API server alone, and whom RBAC allows it.  [default: nowhere]",
)
@log_level_option
@click.pass_obj
def controller(options: GlobalOptions, *, name: str, metrics: str, relay: str, log_level: str) -> None:
    """Run the controller of a cluster, until SIGTERM. Needs no root.

    It gives back what removed nodes leave behind, and says of pools, peers and settings whether they hold. Of
    several one works. Pods need none of them.
    """
    if options.store is None:
        raise click.UsageError("name the cluster's store: --store URL, or PODWAY_STORE")
    check_url(options.store)
    from podway.agent.logs import configure
    from podway.controller.controller import ControllerOptions, run

    configure(log_level)
    run(ControllerOptions(store=options.store, name=name, metrics=metrics, relay=relay))
