"""Helm's own engine for the tests of the chart: a list of operations as JSON on stdin, a list of results on stdout.

An operation is {"do": NAME, ...}; its result {"ok": ...} or {"error": "..."}. One that fails does not keep the next from
being tried, so one start of the engine serves a whole matrix.
"""

import json
import os
import sys

import helm_python as helm
from helm_python import config as helm_config

# Helm downloads the API's description as OpenAPI v2 in protobuf to look for misspelt fields. Some builds of the API server
# cannot write that: they answer 503, and say "Error in OpenAPI handler: [1,1] $root has invalid property: Extensions". Only
# with these is the look left out; another test asks the API server itself about each field.
OPENAPI = os.environ.get("HEDDLE_TEST_OPENAPI") == "served"
spelt = helm_config._opts
helm_config._opts = lambda **pairs: (
    spelt(disable_openapi_validation=not OPENAPI, **pairs) if "timeout_seconds" in pairs and "labels" in pairs else spelt(**pairs)
)


def lint(chart, op):
    report = helm.lint(chart, op.get("values"), strict=True, namespace=op.get("namespace", "heddle-system"))
    return report["messages"], report["errors"]


def render(chart, op):
    with helm.Chart.load(chart) as loaded:
        loaded.validate_schema(op.get("values") or {})
        return loaded.render(
            op.get("values") or {},
            name="heddle",
            namespace=op.get("namespace", "heddle-system"),
            is_install=not op.get("upgrade", False),
            is_upgrade=op.get("upgrade", False),
        )


def release(action):
    def act(chart, op):
        with helm.Config(kubeconfig_path=os.environ["KUBECONFIG"], namespace="heddle-system") as config:
            return getattr(config, action)(
                chart, "heddle", op.get("values") or {}, namespace="heddle-system", timeout=120
            )

    return act


def uninstall(_chart, _op):
    with helm.Config(kubeconfig_path=os.environ["KUBECONFIG"], namespace="heddle-system") as config:
        return config.uninstall("heddle")


DO = {
    "lint": lint,
    "render": render,
    "install": release("install"),
    "upgrade": release("upgrade"),
    "uninstall": uninstall,
}


def main():
    chart = sys.argv[1]
    results = []
    for op in json.load(sys.stdin):
        try:
            results.append({"ok": DO[op["do"]](chart, op)})
        except helm.HelmError as error:
            results.append({"error": str(error)})
    json.dump(results, sys.stdout)


main()
