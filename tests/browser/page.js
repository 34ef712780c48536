// Draws a dashboard about as Grafana would, from what Prometheus answers: for eyes, in tests.
// It knows the kinds of panels and the options that ours use, and no others.

const COLORS = { green: "#73bf69", orange: "#ff9830", red: "#f2495c", blue: "#5794f2", yellow: "#fade2a" };
const PALETTE = [...["green", "yellow", "blue", "orange", "red"].map((name) => COLORS[name]), "#b877d9", "#8ab8ff", "#ffb357", "#96d98d", "#ff7383"];
const SI = { ops: " ops/s", reqps: " req/s", cps: " c/s" };

function shown(value, unit) {
  if (value === null || value === undefined || Number.isNaN(value)) return "NaN";
  if (unit === "percentunit") return `${+(100 * value).toPrecision(3)} %`;
  if (unit === "s" && value !== 0) {
    const [factor, name] = value < 1e-3 ? [1e6, "µs"] : value < 1 ? [1e3, "ms"] : value < 120 ? [1, "s"] : [1 / 60, "min"];
    return `${+(factor * value).toPrecision(3)} ${name}`;
  }
  return `${+value.toPrecision(3)}${unit === "s" ? " s" : (SI[unit] ?? "")}`;
}

const node = (parent, tag, className, text = "") => {
  const made = parent.appendChild(document.createElement(tag));
  made.className = className;
  made.textContent = text;
  return made;
};

// What Prometheus says ------------------------------------------------------------------------

async function ask(from, path, args) {
  const answer = await fetch(`${from}/api/v1/${path}?${new URLSearchParams(args)}`);
  const said = await answer.json();
  if (said.status !== "success") throw new Error(said.error);
  return said.data.result ?? said.data;
}

const legend = (format, labels) => format.replace(/{{\s*(\w+)\s*}}/g, (_, name) => labels[name] ?? "");

// Series as {name, labels, values}, one value for each step, null where there is none.
async function series(target, time) {
  if (target.instant) {
    const found = await ask(time.prometheus, "query", { query: target.expr, time: time.end });
    return found.map((s) => ({ name: legend(target.legendFormat, s.metric), labels: s.metric, values: [+s.value[1]] }));
  }
  const found = await ask(time.prometheus, "query_range", { query: target.expr, start: time.start, end: time.end, step: time.step });
  return found.map((s) => {
    const at = new Map(s.values.map(([when, value]) => [Math.round((when - time.start) / time.step), +value]));
    return { name: legend(target.legendFormat, s.metric), labels: s.metric, values: time.steps.map((_, n) => at.get(n) ?? null) };
  });
}

const numbers = (values) => values.filter((value) => value !== null && !Number.isNaN(value));
const last = (values) => numbers(values).at(-1) ?? null;

function colorOf(value, defaults) {
  const mapped = defaults.mappings?.[0]?.options?.[value];
  if (mapped) return COLORS[mapped.color];
  const passed = defaults.thresholds.steps.filter((step) => step.value === null || step.value === undefined || value >= step.value);
  return COLORS[passed.at(-1).color];
}

// One function for each kind of panel ----------------------------------------------------------

function stat(body, found, panel) {
  const defaults = panel.fieldConfig.defaults;
  const value = last(found[0].values);
  const text = defaults.mappings?.[0]?.options?.[value]?.text ?? shown(value, defaults.unit);
  const number = node(body, "div", "number", text);
  if (panel.options.colorMode === "background") {
    body.style.background = colorOf(value, defaults);
    number.style.color = "white";
    return;
  }
  number.style.color = colorOf(value, defaults);
  const top = Math.max(...numbers(found[0].values), 1e-12);
  const points = found[0].values.map((v, n, all) => (v === null ? "" : `${(100 * n) / (all.length - 1)},${100 - (100 * v) / top}`));
  body.insertAdjacentHTML("beforeend", `<svg class="spark" viewBox="0 0 100 100" preserveAspectRatio="none"><polyline points="0,100 ${points.join(" ")} 100,100" fill="${number.style.color}"/></svg>`);
}

function timeseries(body, found, panel, time) {
  const { defaults, overrides } = panel.fieldConfig;
  const overridden = (name, id) => overrides.find((o) => o.matcher.options === name)?.properties.find((p) => p.id === id)?.value;
  const color = (name, n) => COLORS[overridden(name, "color")?.fixedColor] ?? PALETTE[n % PALETTE.length];
  const isStacked = (name) => (overridden(name, "custom.stacking") ?? defaults.custom.stacking)?.mode === "normal";
  const sum = time.steps.map(() => 0);
  const drawn = found.map((s) => (isStacked(s.name) ? s.values.map((v, n) => (sum[n] += Number.isNaN(v) ? 0 : v)) : s.values));
  const order = found.map((_, n) => n).reverse(); // the lowest of a stack comes last, above the others
  const chart = node(body, "div", "chart");
  const table = node(node(body, "div", "legend"), "table", "");
  table.innerHTML = "<tr><th></th><th>last</th><th>max</th></tr>";
  found.forEach((s, n) => {
    const line = node(table, "tr", "");
    node(line, "td", "").innerHTML = `<i style="background: ${color(s.name, n)}"></i>`;
    line.firstChild.append(s.name || panel.title);
    node(line, "td", "", shown(last(s.values), defaults.unit));
    node(line, "td", "", shown(numbers(s.values).sort((a, b) => b - a)[0], defaults.unit));
  });
  const limits = defaults.custom.thresholdsStyle?.mode === "dashed" ? defaults.thresholds.steps.filter((step) => step.value) : [];
  new uPlot(
    {
      width: chart.clientWidth,
      height: chart.clientHeight,
      legend: { show: false },
      scales: { y: { range: (_, low, high) => [0, (high || 1) * 1.1] } },
      axes: [{ stroke: "#ccccdc", grid: { stroke: "#26282e" } }, { stroke: "#ccccdc", size: 70, grid: { stroke: "#26282e" }, values: (_, ticks) => ticks.map((t) => shown(t, defaults.unit)) }],
      series: [{}, ...order.map((n) => ({ stroke: color(found[n].name, n), width: overridden(found[n].name, "custom.lineWidth") ?? 1, points: { show: false }, fill: color(found[n].name, n) + (isStacked(found[n].name) ? "66" : overridden(found[n].name, "custom.fillOpacity") === 0 ? "00" : "1a") }))],
      hooks: { draw: [(plot) => marks(plot, limits, panel.marks, panel.exemplars)] },
    },
    [time.steps, ...order.map((n) => drawn[n].map((v) => (Number.isNaN(v) ? null : v)))],
    chart,
  );
}

// Limits as dashed lines, annotations as shades from top to bottom, exemplars as diamonds.
function marks(plot, limits, annotations, exemplars) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  const line = (color, dash, ...ends) => {
    ctx.strokeStyle = color;
    ctx.setLineDash(dash);
    ctx.beginPath();
    ends.forEach(([x, y], n) => (n ? ctx.lineTo(x, y) : ctx.moveTo(x, y)));
    ctx.stroke();
  };
  for (const { value, color } of limits) {
    const y = plot.valToPos(value, "y", true);
    line(COLORS[color], [8, 6], [bbox.left, y], [bbox.left + bbox.width, y]);
  }
  for (const { from, to, color } of annotations) {
    const [left, right] = [plot.valToPos(from, "x", true), plot.valToPos(to, "x", true)];
    ctx.fillStyle = COLORS[color] + "1f";
    ctx.fillRect(left, bbox.top, right - left, bbox.height);
    ctx.fillStyle = COLORS[color];
    ctx.fillRect(left, bbox.top + bbox.height - 3, right - left, 3);
  }
  ctx.fillStyle = "#b877d9";
  for (const { timestamp, value } of exemplars) {
    const [x, y] = [plot.valToPos(timestamp, "x", true), plot.valToPos(value, "y", true)];
    ctx.fill(new Path2D(`M${x} ${y - 4}l4 4-4 4-4-4z`));
  }
  ctx.restore();
}

function heatmap(body, found, panel) {
  const canvas = node(body, "canvas", "chart");
  [canvas.width, canvas.height] = [body.clientWidth, body.clientHeight];
  const buckets = found.map((s) => ({ ...s, le: +s.labels.le.replace("+Inf", "Infinity") })).sort((a, b) => a.le - b.le);
  const cells = buckets.map((bucket, n) => bucket.values.map((v, at) => v - (n ? buckets[n - 1].values[at] : 0)));
  const top = Math.max(...cells.flat().filter((v) => !Number.isNaN(v)), 1e-12);
  const [left, height] = [70, canvas.height / buckets.length];
  const width = (canvas.width - left) / found[0].values.length;
  const ctx = canvas.getContext("2d");
  ctx.font = "10px DejaVu Sans";
  cells.forEach((row, n) => {
    const y = canvas.height - (n + 1) * height;
    ctx.fillStyle = "#ccccdc";
    if (n % 2 === 0) ctx.fillText(buckets[n].le === Infinity ? "+Inf" : shown(buckets[n].le, panel.options.yAxis.unit), 4, y + height);
    row.forEach((v, at) => {
      if (!(v > 1e-9)) return;
      ctx.fillStyle = `rgba(255, 152, 48, ${0.15 + 0.85 * Math.sqrt(v / top)})`;
      ctx.fillRect(left + at * width, y, width + 0.5, height - 0.5);
    });
  });
}

function bargauge(body, found, panel) {
  const defaults = panel.fieldConfig.defaults;
  const values = found.map((s) => last(s.values));
  const top = Math.max(...values.filter((v) => !Number.isNaN(v)), 1e-12);
  found.forEach((s, n) => {
    const bar = node(body, "div", "bar");
    node(bar, "span", "", s.name);
    const drawn = node(bar, "div", "");
    drawn.style.width = `${(100 * (values[n] || 0)) / top}%`;
    drawn.style.background = colorOf(values[n], defaults);
    node(bar, "b", "", shown(values[n], defaults.unit)).style.color = colorOf(values[n], defaults);
  });
}

function table(body, found, panel) {
  const { indexByName, renameByName } = panel.transformations[0].options;
  const keys = Object.keys(indexByName).sort((a, b) => indexByName[a] - indexByName[b]);
  const made = node(body, "table", "listing");
  const head = node(made, "tr", "");
  keys.forEach((key) => node(head, "th", "", renameByName[key]));
  for (const s of found) {
    const line = node(made, "tr", "");
    keys.forEach((key) => node(line, "td", "", key === "Value" ? `${s.values[0]}` : (s.labels[key] ?? "")));
  }
}

function states(body, found, panel) {
  for (const s of found) {
    const line = node(body, "div", "state");
    node(line, "span", "", s.name);
    const drawn = node(line, "div", "");
    for (const value of s.values) {
      const piece = node(drawn, "b", "");
      piece.style.cssText = `flex: 1; background: ${value === null ? "transparent" : colorOf(value, panel.fieldConfig.defaults)}`;
    }
  }
}

const text = (body, _, panel) => node(body, "pre", "", panel.options.content);

const KINDS = { stat, timeseries, heatmap, bargauge, table, "state-timeline": states, text };

// The dashboard -----------------------------------------------------------------------------------

async function fill(panel, body, time) {
  const found = (await Promise.all((panel.targets ?? []).map((target) => series(target, time)))).flat();
  if (panel.targets && !found.length) throw new Error("no data");
  const linked = (panel.targets ?? []).filter((target) => target.exemplar);
  const exemplars = await Promise.all(linked.map((target) => ask(time.prometheus, "query_exemplars", { query: target.expr, start: time.start, end: time.end })));
  panel.exemplars = exemplars.flat(2).flatMap((s) => s.exemplars).map((e) => ({ ...e, value: +e.value }));
  KINDS[panel.type](body, found, panel, time);
}

// Draws all, and returns what went wrong, by panel.
async function draw(dashboard, time) {
  document.querySelector("h1").textContent = dashboard.title;
  time.steps = Array.from({ length: Math.floor((time.end - time.start) / time.step) + 1 }, (_, n) => time.start + n * time.step);
  const annotations = [];
  for (const { expr, iconColor } of dashboard.annotations.list ?? []) {
    const found = await series({ expr, legendFormat: "" }, time);
    for (const s of found) {
      s.values.forEach((v, n) => v !== null && annotations.push({ from: time.steps[n] - time.step / 2, to: time.steps[n] + time.step / 2, color: iconColor }));
    }
  }
  const problems = [];
  const waiting = dashboard.panels.map(async (panel) => {
    const { x, y, w, h } = panel.gridPos;
    const place = node(document.querySelector("#grid"), "div", panel.type === "row" ? "row" : "panel");
    place.style.gridArea = `${y + 1} / ${x + 1} / span ${h} / span ${w}`;
    if (panel.type === "row") return (place.textContent = panel.title);
    node(place, "div", "title", panel.title);
    const body = node(place, "div", "body");
    try {
      await fill({ ...panel, marks: annotations }, body, time);
    } catch (error) {
      problems.push(`${panel.title}: ${error.message}`);
      node(body, "div", "problem", error.message);
    }
  });
  await Promise.all(waiting);
  return problems;
}
