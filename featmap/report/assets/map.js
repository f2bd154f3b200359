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
  const of = FM.measures[measure];
  const values = new Float32Array(n * n);
  for (let i = 0; i < n; i += 1) for (let j = 0; j < n; j += 1) values[i * n + j] = of(i, j);
  return values;
};

FM.map.square = (values) => Bokeh.require("core/util/ndarray").ndarray(values, { shape: [FM.live, FM.live] });

// Width of the tree and the bands left of and above the map, in cells.
FM.map.margins = () => ({ band: 0.025 * FM.live, tree: FM.data.tree.length ? 0.09 * FM.live : 0 });

FM.map.clusterRanges = () => {
  const cluster = FM.data.features.cluster || [];
  const ranges = [];
  for (let k = 0; k < FM.live; k += 1) {
    const last = ranges.at(-1);
    if (last && last.cluster === cluster[k]) last.end = k + 1;
    else ranges.push({ cluster: cluster[k] ?? null, start: k, end: k + 1 });
  }
  return ranges;
};

FM.map.bands = (figure) => {
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
  const source = new Bokeh.ColumnDataSource({ data: quads });
  const at = Object.fromEntries(["left", "right", "top", "bottom"].map((name) => [name, { field: name }]));
  figure.quad({ ...at, fill_color: { field: "colour" }, line_color: null, source });
};

FM.map.tree = (figure) => {
  const { band, tree } = FM.map.margins();
  const highest = Math.max(...FM.data.tree.map((join) => join[4]), 1e-9);
  const level = (height) => -1.5 * band - (tree * height) / highest;
  const lines = { xs: [], ys: [] };
  for (const [left, leftHeight, right, rightHeight, top] of FM.data.tree) {
    const along = [left, left, right, right];
    const across = [leftHeight, top, top, rightHeight].map(level);
    lines.xs.push(along, across);
    lines.ys.push(across, along);
  }
  const source = new Bokeh.ColumnDataSource({ data: lines });
  figure.multi_line({ xs: { field: "xs" }, ys: { field: "ys" }, line_color: "#555555", line_width: 0.7, source });
};

FM.map.outline = (figure, colour, width) => {
  const source = new Bokeh.ColumnDataSource({ data: { left: [], right: [], top: [], bottom: [] } });
  const at = Object.fromEntries(["left", "right", "top", "bottom"].map((name) => [name, { field: name }]));
  figure.quad({ ...at, fill_color: null, line_color: colour, line_width: width, source });
  return source;
};

FM.map.build = async () => {
  const n = FM.live;
  const { band, tree } = FM.map.margins();
  const before = -1.6 * band - tree;
  const side = FM.side();
  const figure = new Bokeh.Plotting.Figure({
    frame_width: side - 30,
    frame_height: side - 30, // square, so that cells are squares
    tools: "pan,box_zoom,wheel_zoom,reset",
    active_scroll: "wheel_zoom",
    x_range: new Bokeh.Range1d({ start: before, end: n }),
    y_range: new Bokeh.Range1d({ start: n, end: before }),
    x_axis_label: "response of feature",
    y_axis_label: "maximising image of feature",
    toolbar_location: "above",
    min_border: 2,
    outline_line_color: null,
  });
  figure.toolbar.logo = null;
  const middles = Array.from({ length: n }, (_, k) => k + 0.5);
  const channels = new Map(middles.map((at, k) => [at, FM.short(k)]));
  for (const axis of [figure.xaxis, figure.yaxis]) {
    axis.ticker = new Bokeh.FixedTicker({ ticks: middles });
    axis.major_label_overrides = channels;
    axis.major_label_policy = new Bokeh.NoOverlap({ min_distance: 4 }); // more labels at a closer zoom
    axis.major_label_text_font_size = "9px";
    axis.major_tick_line_color = null;
    axis.minor_tick_line_color = null;
    axis.axis_line_color = null;
  }
  figure.xaxis.major_label_orientation = "vertical";
  figure.grid.visible = false;
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
  FM.map.bands(figure);
  FM.map.tree(figure);
  FM.map.cross = FM.map.outline(figure, "#000000", 1.2);
  FM.map.pin = FM.map.outline(figure, "#000000", 2.5);
  figure.add_layout(new Bokeh.ColorBar({ color_mapper: mapper, width: 12, padding: 4, bar_line_color: null }), "right");
  Object.assign(FM.map, { figure, mapper, source, built: true });
  FM.map.show();
  const place = document.getElementById("map");
  FM.map.view = FM.withoutOutline(await Bokeh.Plotting.show(figure, place));
  FM.map.listen(figure, place);
  FM.map.mark();
};

FM.map.show = () => {
  if (!FM.map.built) return;
  const span = FM.data.reach[FM.measure];
  FM.map.mapper.low = -span;
  FM.map.mapper.high = span;
  const image = FM.map.square(FM.map.values(FM.measure));
  FM.map.source.data = { image: [image], x: [0], y: [0], side: [FM.live] };
  document.getElementById("measured").textContent = FM.data.labels[FM.measure];
};

// The selected feature's row and column, and the pinned pair.
FM.map.mark = () => {
  if (!FM.map.built) return;
  const k = FM.selected !== null && FM.selected < FM.live ? FM.selected : null;
  FM.map.cross.data =
    k === null
      ? { left: [], right: [], top: [], bottom: [] }
      : { left: [0, k], right: [FM.live, k + 1], top: [k, 0], bottom: [k + 1, FM.live] };
  const [i, j] = FM.pinned || [];
  FM.map.pin.data =
    i === undefined || Math.max(i, j) >= FM.live
      ? { left: [], right: [], top: [], bottom: [] }
      : { left: [j], right: [j + 1], top: [i], bottom: [i + 1] };
};

FM.map.cell = (event) => {
  const [i, j] = [Math.floor(event.y), Math.floor(event.x)];
  return i >= 0 && j >= 0 && i < FM.live && j < FM.live ? [i, j] : null;
};

FM.map.listen = (figure, place) => FM.listen(figure, place, FM.map.cell, (pair) => FM.pair(...pair, false), FM.pinPair);

// Position of a cell in the window, in pixels; tests move the mouse there.
FM.map.pixel = (i, j) => {
  const { frame, el } = FM.map.view;
  const box = el.getBoundingClientRect();
  return [box.x + frame.x_scale.compute(j + 0.5), box.y + frame.y_scale.compute(i + 0.5)];
};
