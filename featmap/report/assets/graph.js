"use strict";
// The neighbour graph: nodes are the features' images, laid out by community; wider edges mean higher similarity.

FM.graph = { built: false };
FM.graph.NODE = 0.86;
FM.graph.NEAR = 0.5;
FM.graph.CUT = 0.6;

// Tile of each feature, cut from the sheet of thumbnails: the middle of its image, because a whole image is a gray blur at this size.
FM.graph.cutTiles = async () => {
  const sheet = new Image();
  if (FM.data.thumbnails !== null) {
    sheet.src = FM.data.thumbnails.uri;
    await sheet.decode();
  }
  const { side, columns } = FM.data.thumbnails ?? { side: 80, columns: 1 };
  const cut = Math.round(side * FM.graph.CUT);
  const edge = Math.round((side - cut) / 2);
  const canvas = FM.element("canvas", { width: cut, height: cut });
  const context = canvas.getContext("2d");
  Object.assign(context, { font: `${cut / 3}px sans-serif`, textAlign: "center", textBaseline: "middle" });
  return FM.names.map((_, k) => {
    if (FM.data.thumbnails === null || (FM.data.stimuli && !FM.hasExample(k))) {
      context.fillStyle = "#ffffff";
      context.fillRect(0, 0, cut, cut);
      context.fillStyle = "#1b1b1b";
      context.fillText(FM.short(k), cut / 2, cut / 2, cut);
    } else {
      context.drawImage(sheet, -(k % columns) * side - edge, -Math.floor(k / columns) * side - edge);
    }
    return canvas.toDataURL();
  });
};

FM.graph.edges = (figure, colour, alpha) => {
  const source = new Bokeh.ColumnDataSource({ data: { xs: [], ys: [], width: [] } });
  figure.multi_line({
    xs: { field: "xs" },
    ys: { field: "ys" },
    line_width: { field: "width" },
    line_color: colour,
    line_alpha: alpha,
    source,
  });
  return source;
};

FM.graph.squares = (figure, style) => {
  const source = new Bokeh.ColumnDataSource({ data: { x: [], y: [], colour: [] } });
  const side = FM.graph.NODE + 0.12;
  figure.rect({ x: { field: "x" }, y: { field: "y" }, width: side, height: side, ...style, source });
  return source;
};

// Size of the frame, and ranges in which all nodes lie.
FM.graph.ranges = () => {
  const { x, y } = FM.shown.graph;
  const ends = (values) => [Math.min(...values) - 1, Math.max(...values) + 1];
  const [[left, right], [low, high]] = [ends(x), ends(y)];
  const [width, height] = FM.graph.frame;
  const unit = Math.max((right - left) / width, (high - low) / height); // units of the layout per pixel
  const range = (a, b, pixels) => [(a + b - unit * pixels) / 2, (a + b + unit * pixels) / 2];
  return [range(left, right, width), range(low, high, height)];
};

FM.graph.build = async () => {
  if (FM.graph.built) return;
  FM.graph.built = true;
  FM.graph.frame = [FM.side() + 30, FM.side() - 10];
  const [frame_width, frame_height] = FM.graph.frame;
  const figure = new Bokeh.Plotting.Figure({
    tools: "pan,box_zoom,wheel_zoom,reset",
    active_scroll: "wheel_zoom",
    toolbar_location: "above",
    min_border: 2,
    frame_width,
    frame_height,
    x_range: new Bokeh.Range1d(),
    y_range: new Bokeh.Range1d(),
  });
  figure.toolbar.logo = null;
  figure.axis.visible = false;
  figure.grid.visible = false;
  FM.graph.all = FM.graph.edges(figure, "#777777", 0.45);
  FM.graph.own = FM.graph.edges(figure, "#000000", 0.9);
  FM.graph.frames = FM.graph.squares(figure, { fill_color: { field: "colour" }, line_color: null });
  FM.graph.tiles = await FM.graph.cutTiles();
  FM.graph.nodes = new Bokeh.ColumnDataSource({ data: { url: [], x: [], y: [] } });
  figure.image_url({
    url: { field: "url" },
    x: { field: "x" },
    y: { field: "y" },
    w: FM.graph.NODE,
    h: FM.graph.NODE,
    anchor: "center",
    source: FM.graph.nodes,
  });
  FM.graph.ring = FM.graph.squares(figure, { fill_color: null, line_color: "#000000", line_width: 3.5 });
  FM.graph.figure = figure;
  FM.graph.arrange();
  const place = document.getElementById("graph");
  FM.graph.view = FM.withoutOutline(await Bokeh.Plotting.show(figure, place));
  FM.graph.listen(figure, place);
};

// Nodes and slider of the map on display.
FM.graph.arrange = () => {
  if (FM.live === 0) return;
  const { graph, order } = FM.shown;
  const { x, y, weight } = graph;
  const slider = document.getElementById("threshold");
  slider.min = String(Math.floor(weight.reduce((low, w) => Math.min(low, w), 1) * 100) / 100);
  slider.value = slider.min;
  if (!FM.graph.figure) return;
  const [across, up] = FM.graph.ranges();
  FM.setRange(FM.graph.figure.x_range, ...across);
  FM.setRange(FM.graph.figure.y_range, ...up);
  FM.graph.frames.data = { x, y, colour: order.map((k) => FM.colour(FM.communityOf(k))) };
  FM.graph.nodes.data = { url: order.map((k) => FM.graph.tiles[k]), x, y };
  FM.graph.threshold();
};

// Draw the edges at or above the threshold; those of the selected feature lie on top.
FM.graph.threshold = () => {
  if (!FM.graph.figure || FM.live === 0) return;
  const { x, y, head, tail, weight } = FM.shown.graph;
  const at = FM.selected === null ? -1 : FM.shown.place[FM.selected];
  const least = Number(document.getElementById("threshold").value);
  const empty = () => ({ xs: [], ys: [], width: [] });
  const [all, own] = [empty(), empty()];
  for (let e = 0; e < weight.length; e += 1) {
    if (weight[e] < least) continue;
    const [i, j] = [head[e], tail[e]];
    const into = i === at || j === at ? own : all;
    into.xs.push([x[i], x[j]]);
    into.ys.push([y[i], y[j]]);
    into.width.push(0.3 + 5 * weight[e] ** 2);
  }
  FM.graph.all.data = all;
  FM.graph.own.data = own;
  FM.graph.ring.data = at < 0 ? { x: [], y: [], colour: [] } : { x: [x[at]], y: [y[at]], colour: [""] };
  const shown = all.width.length + own.width.length;
  document.getElementById("edges").textContent = `S from ${least.toFixed(2)}: ${shown} of ${weight.length} edges`;
};

FM.graph.node = (event) => {
  const { x, y } = FM.shown.graph;
  const near = (_, at) => Math.abs(event.x - x[at]) < FM.graph.NEAR && Math.abs(event.y - y[at]) < FM.graph.NEAR;
  return FM.shown.order.find(near) ?? null;
};

FM.graph.listen = (figure, place) => FM.listen(figure, place, FM.graph.node, FM.single, FM.select);

FM.graph.pixel = (k) => {
  const { frame, el } = FM.graph.view;
  const box = el.getBoundingClientRect();
  const { graph, place } = FM.shown;
  return [box.x + frame.x_scale.compute(graph.x[place[k]]), box.y + frame.y_scale.compute(graph.y[place[k]])];
};
