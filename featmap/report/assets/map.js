"use strict";
// The heatmap: a measure of every pair in the order of the dendrogram, its tree and cluster bands beside it.

FM.map = { built: false };

// Keys act on the page, so a clicked figure needs no focus outline.
FM.withoutOutline = (view) => {
  view.canvas_view.events_el.style.outline = "none";
  return view;
};

FM.map.values = (measure) => {
  const n = FM.live;
  const { order } = FM.shown;
  const of = FM.measures[measure];
  const values = new Float32Array(n * n);
  for (let i = 0; i < n; i += 1) for (let j = 0; j < n; j += 1) values[i * n + j] = of(order[i], order[j]);
  return values;
};

FM.map.square = (values) => Bokeh.require("core/util/ndarray").ndarray(values, { shape: [FM.live, FM.live] });

// Width of the tree and the bands left of and above the map, in cells.
FM.map.margins = () => ({ band: 0.025 * FM.live, tree: FM.shown.tree.length ? 0.09 * FM.live : 0 });

FM.map.clusterRanges = () => {
  const ranges = [];
  for (const [at, k] of FM.shown.order.entries()) {
    const cluster = FM.clusterOf(k);
    const last = ranges.at(-1);
    if (last && last.cluster === cluster) last.end = at + 1;
    else ranges.push({ cluster, start: at, end: at + 1 });
  }
  return ranges;
};

FM.map.bands = () => {
  const { band } = FM.map.margins();
  const quads = { left: [], right: [], top: [], bottom: [], colour: [] };
  for (const { cluster, start, end } of FM.map.clusterRanges()) {
    const sides = [
      [-1.2 * band, -0.2 * band, start, end],
      [start, end, -1.2 * band, -0.2 * band],
    ];
    for (const [left, right, top, bottom] of sides) {
      quads.left.push(left);
      quads.right.push(right);
      quads.top.push(top);
      quads.bottom.push(bottom);
      quads.colour.push(FM.colour(cluster));
    }
  }
  return quads;
};

FM.map.tree = () => {
  const { band, tree } = FM.map.margins();
  const highest = Math.max(...FM.shown.tree.map((join) => join[4]), 1e-9);
  const level = (height) => -1.5 * band - (tree * height) / highest;
  const lines = { xs: [], ys: [] };
  for (const [left, leftHeight, right, rightHeight, top] of FM.shown.tree) {
    const along = [left, left, right, right];
    const across = [leftHeight, top, top, rightHeight].map(level);
    lines.xs.push(along, across);
    lines.ys.push(across, along);
  }
  return lines;
};

FM.map.quads = (figure, style) => {
  const source = new Bokeh.ColumnDataSource({ data: { left: [], right: [], top: [], bottom: [], colour: [] } });
  const at = Object.fromEntries(["left", "right", "top", "bottom"].map((name) => [name, { field: name }]));
  figure.quad({ ...at, ...style, source });
  return source;
};

FM.map.outline = (figure, colour, width) => FM.map.quads(figure, { fill_color: null, line_color: colour, line_width: width });

// Set both ends of a range, and what the reset tool returns to.
FM.setRange = (range, start, end) => range.setv({ start, end, reset_start: start, reset_end: end });

FM.map.figure = (side) => {
  const figure = new Bokeh.Plotting.Figure({
    frame_width: side - 30,
    frame_height: side - 30, // square, so that cells are squares
    tools: "pan,box_zoom,wheel_zoom,reset",
    active_scroll: "wheel_zoom",
    x_range: new Bokeh.Range1d({ start: 0, end: 1 }),
    y_range: new Bokeh.Range1d({ start: 1, end: 0 }),
    toolbar_location: "above",
    min_border: 2,
    outline_line_color: null,
  });
  figure.toolbar.logo = null;
  for (const axis of [figure.xaxis, figure.yaxis]) {
    axis.major_label_policy = new Bokeh.NoOverlap({ min_distance: 4 }); // more labels at a closer zoom
    axis.major_label_text_font_size = "9px";
    axis.major_tick_line_color = null;
    axis.minor_tick_line_color = null;
    axis.axis_line_color = null;
  }
  figure.xaxis.major_label_orientation = "vertical";
  figure.grid.visible = false;
  return figure;
};

FM.map.build = async () => {
  if (FM.map.built) return;
  FM.map.built = true;
  const figure = FM.map.figure(FM.side());
  const mapper = new Bokeh.LinearColorMapper({ palette: FM.data.palette, nan_color: FM.data.gray, low: -1, high: 1 });
  const source = new Bokeh.ColumnDataSource({ data: { image: [], x: [], y: [], side: [] } });
  figure.image({
    image: { field: "image" },
    x: { field: "x" },
    y: { field: "y" },
    dw: { field: "side" },
    dh: { field: "side" },
    color_mapper: mapper,
    source,
  });
  FM.map.banded = FM.map.quads(figure, { fill_color: { field: "colour" }, line_color: null });
  FM.map.branches = new Bokeh.ColumnDataSource({ data: { xs: [], ys: [] } });
  figure.multi_line({ xs: { field: "xs" }, ys: { field: "ys" }, line_color: "#555555", line_width: 0.7, source: FM.map.branches });
  FM.map.cross = FM.map.outline(figure, "#000000", 1.2);
  FM.map.pin = FM.map.outline(figure, "#000000", 2.5);
  figure.add_layout(new Bokeh.ColorBar({ color_mapper: mapper, width: 12, padding: 4, bar_line_color: null }), "right");
  Object.assign(FM.map, { drawn: figure, mapper, source });
  FM.map.arrange();
  const place = document.getElementById("map");
  FM.map.view = FM.withoutOutline(await Bokeh.Plotting.show(figure, place));
  FM.map.listen(figure, place);
};

// Order, tree and bands of the map on display.
FM.map.arrange = () => {
  const figure = FM.map.drawn;
  if (!figure || FM.live === 0) return;
  const { band, tree } = FM.map.margins();
  const before = -1.6 * band - tree;
  FM.setRange(figure.x_range, before, FM.live);
  FM.setRange(figure.y_range, FM.live, before);
  const middles = FM.shown.order.map((_, at) => at + 0.5);
  const channels = new Map(FM.shown.order.map((k, at) => [middles[at], FM.short(k)]));
  for (const axis of [figure.xaxis, figure.yaxis]) {
    axis.ticker = new Bokeh.FixedTicker({ ticks: middles });
    axis.major_label_overrides = channels;
  }
  const ofImages = FM.stimuli === "images";
  figure.xaxis.axis_label = ofImages ? "response of feature" : "feature";
  figure.yaxis.axis_label = ofImages ? "maximising image of feature" : "feature";
  FM.map.banded.data = FM.map.bands();
  FM.map.branches.data = FM.map.tree();
  FM.map.show();
  FM.map.mark();
};

FM.map.show = () => {
  if (!FM.map.drawn || FM.live === 0) return;
  const span = FM.stimuli === "images" ? FM.data.reach[FM.measure] : FM.shown.reach;
  FM.map.mapper.low = -span;
  FM.map.mapper.high = span;
  const image = FM.map.square(FM.map.values(FM.measure));
  FM.map.source.data = { image: [image], x: [0], y: [0], side: [FM.live] };
  const over = (FM.hasBoth || FM.data.stimuli) && FM.measure === "profile" ? ` over ${FM.overStimuli(FM.stimuli)}` : "";
  document.getElementById("measured").textContent = FM.data.labels[FM.measure] + over;
};

// The selected feature's row and column, and the pinned pair.
FM.map.mark = () => {
  if (!FM.map.drawn) return;
  const place = (k) => (k === null || k === undefined ? -1 : FM.shown.place[k]);
  const none = { left: [], right: [], top: [], bottom: [], colour: [] };
  const at = place(FM.selected);
  FM.map.cross.data =
    at < 0 ? none : { left: [0, at], right: [FM.live, at + 1], top: [at, 0], bottom: [at + 1, FM.live], colour: ["", ""] };
  const [i, j] = (FM.pinned || []).map(place);
  FM.map.pin.data =
    i === undefined || Math.min(i, j) < 0 ? none : { left: [j], right: [j + 1], top: [i], bottom: [i + 1], colour: [""] };
};

FM.map.cell = (event) => {
  const [i, j] = [Math.floor(event.y), Math.floor(event.x)];
  const { order } = FM.shown;
  return i >= 0 && j >= 0 && i < FM.live && j < FM.live ? [order[i], order[j]] : null;
};

FM.map.listen = (figure, place) => FM.listen(figure, place, FM.map.cell, (pair) => FM.pair(...pair, false), FM.pinPair);

// Position of the cell of two features in the window, in pixels; tests move the mouse there.
FM.map.pixel = (i, j) => {
  const { frame, el } = FM.map.view;
  const box = el.getBoundingClientRect();
  const { place } = FM.shown;
  return [box.x + frame.x_scale.compute(place[j] + 0.5), box.y + frame.y_scale.compute(place[i] + 0.5)];
};
