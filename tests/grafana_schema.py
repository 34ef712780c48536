"""Checks dashboards against JSON Schemas made, for each session of tests, from Grafana's own types.

Nothing of Grafana's is kept in this repository; the types are those that `tools` installs.
`dashboard_lint` checks the rules that a schema can't express.
"""

import copy
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from jsonschema import Draft7Validator
from jsonschema.exceptions import best_match

from tests import tools

Json = dict[str, Any]

PANELS: Final = ("bargauge", "heatmap", "stat", "state-timeline", "table", "text", "timeseries")


@dataclass(frozen=True, slots=True)
class Gap:
    """What Grafana takes in the items of a list, and its types don't say."""

    of: str
    path: str
    properties: Json
    reason: str


GAPS: Final = (
    Gap(
        "dashboard",
        "annotations.list",
        {"expr": {"type": "string"}},
        "a Prometheus annotation's query; `target` is typed as that of Grafana's own annotations, "
        "and Grafana moves expr there (annotations.ts of @grafana/prometheus)",
    ),
    Gap(
        "dashboard",
        "templating.list",
        {
            "auto": {"type": "boolean"},
            "auto_count": {"type": "number"},
            "auto_min": {"type": "string"},
        },
        "an interval variable's; the SDK writes them to every variable, and Grafana passes over it",
    ),
)

_GENERATOR: Final = """
const fs = require("fs");
const { createGenerator } = require("ts-json-schema-generator");
const grafana = "./node_modules/@grafana/";
const raw = grafana + "schema/dist/esm/raw/";
const imports = [
  `import * as dashboard from "${raw}dashboard/x/dashboard_types.gen";`,
  `import { PromQuery } from "${grafana}prometheus/dist/esm/index.mjs";`,
];
const members = [
  "dashboard: dashboard.Dashboard;",
  "panel: dashboard.Panel;",
  "row: dashboard.RowPanel;",
  "target: PromQuery;",
];
process.argv.slice(1).forEach((panel, index) => {
  const folder = raw + "composable/" + panel.replace("-", "") + "/panelcfg/x/";
  const file = folder + fs.readdirSync(folder).find((name) => name.endsWith(".gen.d.ts"));
  const custom = /export interface FieldConfig/.test(fs.readFileSync(file, "utf8"));
  imports.push(`import * as p${index} from "${file.replace(".d.ts", "")}";`);
  members.push(`"${panel} options": p${index}.Options;`);
  members.push(`"${panel} custom": ${custom ? `p${index}.FieldConfig` : "{}"};`);
});
const entry = [...imports, "export interface Schemas {", ...members, "}"].join("\\n");
fs.writeFileSync("schemas.ts", entry);
const schema = createGenerator({
  path: "schemas.ts",
  type: "Schemas",
  expose: "none",  // inline all: two panels' Options would clash
  topRef: false,
  jsDoc: "none",
  skipTypeCheck: true,  // the types of Grafana's front end aren't there
}).createSchema("Schemas");
process.stdout.write(JSON.stringify(schema.properties));
"""


@functools.cache
def schemas() -> Json:
    """Return the schemas by what they are of: `dashboard`, `target`, `stat options`, and so on."""
    tools.package("@grafana/schema")
    made: Json = json.loads(tools.run("node", "-e", _GENERATOR, *PANELS))
    # The generator takes a type that it can't find for one that takes anything.
    if vague := [name for name, one in made.items() if "additionalProperties" not in one]:
        raise RuntimeError(f"no types of {vague}")
    for of in ("dashboard", "row"):
        # Each panel is checked by itself: of an "any of" a message says little.
        made[of]["properties"]["panels"]["items"] = {}
    for gap in GAPS:
        _inside(made[gap.of], gap.path)["items"]["properties"].update(gap.properties)
    return made


def problems(dashboard: Json) -> list[str]:
    """Return each violation, with its JSON path."""
    of = schemas()
    return [
        *_violations(dashboard, of["dashboard"], "$"),
        *_of_panels(dashboard.get("panels", []), of, "$"),
    ]


def _of_panels(panels: list[Json], of: Json, at: str) -> Iterator[str]:
    for index, panel in enumerate(panels):
        here = f"{at}.panels[{index}]"
        kind = panel.get("type")
        if kind == "row":
            yield from _violations(panel, of["row"], here)
            yield from _of_panels(panel.get("panels", []), of, here)
            continue
        yield from _violations(panel, of["panel"], here)
        if kind not in PANELS:
            yield f"{here}.type: {kind!r} is none of {', '.join(PANELS)}"
            continue
        # Without any, the plugin's defaults hold; with some, they have to be all.
        if "options" in panel:
            yield from _violations(panel["options"], of[f"{kind} options"], f"{here}.options")
        for number, target in enumerate(panel.get("targets", [])):
            yield from _violations(target, of["target"], f"{here}.targets[{number}]")
        yield from _of_fields(panel.get("fieldConfig", {}), of, kind, f"{here}.fieldConfig")


def _of_fields(config: Json, of: Json, kind: str, at: str) -> Iterator[str]:
    custom = of[f"{kind} custom"]
    if given := config.get("defaults", {}).get("custom"):
        yield from _violations(given, custom, f"{at}.defaults.custom")
    # An override's id is a path in the defaults.
    field = copy.deepcopy(_inside(of["panel"], "fieldConfig.defaults"))
    field["properties"]["custom"] = custom
    for index, override in enumerate(config.get("overrides", [])):
        for number, one in enumerate(override.get("properties", [])):
            here = f"{at}.overrides[{index}].properties[{number}]"
            try:
                schema = _inside(field, one["id"])
            except KeyError:
                yield f"{here}.id: {one['id']!r} is no option of {kind}"
            else:
                yield from _violations(one.get("value"), schema, f"{here}.value")


def _inside(schema: Json, path: str) -> Json:
    """Return the schema of what is at a dotted path."""
    for name in path.split("."):
        schema = schema["properties"][name]
    return schema


def _violations(value: Any, schema: Json, at: str) -> Iterator[str]:
    for error in Draft7Validator(schema).iter_errors(value):
        exact = best_match([error]) or error  # inside an "any of", the alternative that was meant
        yield f"{at}{exact.json_path[1:]}: {exact.message}"
