"""``python -m tests.recorded``: what the statement says of a recorded real OpenCost, beside that cluster's truth."""

from __future__ import annotations

from tests.unit.test_recorded import TRUTH, read, statement, true_namespace


def main() -> None:
    found = statement(read("alloc_namespace_step1d_idle.json"))
    print(f"{'':<16}{'statement':>12}{'truth':>12}{'off by':>10}")
    rows = [(row.namespace, row.total_cost, true_namespace(row.namespace)) for row in found.breakdown_by_namespace]
    rows.append(("(idle)", found.idle_cost, TRUTH["idle"]))
    rows.append(("(unmounted)", found.special["__unmounted__"], true_namespace("__unmounted__")))
    rows.append(("total", found.total_cost, TRUTH["allocation_total"]))
    for name, told, true in rows:
        print(f"{name:<16}{told:>12.4f}{true:>12.4f}{(told - true) / true:>10.3%}")


if __name__ == "__main__":
    main()
