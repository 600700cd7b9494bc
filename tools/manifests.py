"""python -m tools.manifests --write | --check | --image: what is in deploy/ and is made of something else.

deploy/crds.yaml is made of the types in src/podway/api/kinds, deploy/podway.yaml of the files that
deploy/kustomization.yaml names, and so are the templates of the chart in deploy/helm. --image prints what the
image of Podway is called.
"""

import sys
from pathlib import Path

import yaml

from podway import __version__
from podway.deploy.objects import CRDS, IMAGE, containers, texts
from tools.chart import DriftError, templates

DEPLOY = Path(__file__).parents[1] / "deploy"

HEAD = """\
# Podway on a Kubernetes cluster: kubectl apply -f podway.yaml
# Assembled by ./dev manifests of the files beside it. What to look at before: docs/kubernetes.md
"""


def assembled() -> str:
    """Return podway.yaml: the files that kustomization.yaml names, in its order."""
    return HEAD + "".join(f"---\n{text.removeprefix('---').strip()}\n" for text in texts(DEPLOY).values())


def problems(whole: str) -> list[str]:
    """Return what is wrong in what is assembled: images of another version, and objects that are there twice."""
    found, wrong = set(), []
    for document in filter(None, yaml.safe_load_all(whole)):
        metadata = document["metadata"]
        key = (document["kind"], metadata.get("namespace", ""), metadata["name"])
        wrong += [f"{'/'.join(key)} is there twice"] if key in found else []
        found.add(key)
        for container in containers(document):
            if container["image"] != IMAGE:
                wrong.append(f"{'/'.join(key)}: container {container['name']} is not of {IMAGE}")
    return wrong


def main(what: str) -> int:
    """Do what is asked; return the exit status."""
    if what == "--image":
        print(IMAGE)
        return 0
    crds, whole, directory = texts(DEPLOY)[CRDS], assembled(), DEPLOY / "helm/podway"
    chart = yaml.safe_load((directory / "Chart.yaml").read_text())
    wrong = problems(whole)
    if {chart["version"], chart["appVersion"]} != {__version__}:
        wrong.append(f"the chart is not of version {__version__}")
    made = {DEPLOY / "crds.yaml": crds, DEPLOY / "podway.yaml": whole}
    try:
        made |= {directory / "templates" / name: text for name, text in templates(texts(DEPLOY)).items()}
    except DriftError as error:
        wrong.append(str(error))
    for problem in wrong:
        print(f"deploy: {problem}")
    for path, text in made.items():
        if what == "--write":
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            print(f"{path.relative_to(DEPLOY.parent)} is not what it is made of: ./dev manifests")
            return 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
