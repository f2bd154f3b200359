"use strict";
// The neighbour graph: nodes are the features' images, laid out by community; wider edges mean higher similarity.

FM.graph = { built: false };
FM.graph.NODE = 0.86;
FM.graph.NEAR = 0.5;
FM.graph.CUT = 0.6;

// Tile of each node, cut from the sheet of thumbnails: the middle of its image, because a whole image is a gray blur at this size.
FM.graph.tiles = async () => {
  const { side, columns, uri } = FM.data.thumbnails;
  const sheet = new Image();
  sheet.src = uri;
  await sheet.decode();
  const cut = Math.round(side * FM.graph.CUT);
  const edge = Math.round((side - cut) / 2);
  const canvas = FM.element("canvas", { width: cut, height: cut });
  const context = canvas.getContext("2d");
  const tiles = [];
  for (let k = 0; k < FM.live; k += 1) {
    context.drawImage(sheet, -(k % columns) * side - edge, -Math.floor(k / columns) * side - edge);
    tiles.push(canvas.toDataURL());
  }
  return tiles;
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

FM.graph.frame = (side) => {
  const { x, y } = FM.data.graph;
  const ends = (values) => [Math.min(...values) - 1, Math.max(...values) + 1];
  const [[left, right], [low, high]] = [ends(x), ends(y)];
  const [width, height] = [side + 30, side - 10];
  const unit = Math.max((right - left) / width, (high - low) / height); // units of the layout per pixel
  const range = (a, b, pixels) => new Bokeh.Range1d({ start: (a + b - unit * pixels) / 2, end: (a + b + unit * pixels) / 2 });
  return { frame_width: width, frame_height: height, x_range: range(left, right, width), y_range: range(low, high, height) };
};

FM.graph.build = async () => {
  if (FM.graph.built) return;
  FM.graph.built = true;
  const figure = new Bokeh.Plotting.Figure({
    tools: "pan,box_zoom,wheel_zoom,reset",
    active_scroll: "wheel_zoom",
    toolbar_location: "above",
    min_border: 2,
    ...FM.graph.frame(FM.side()),
  });
  figure.toolbar.logo = null;
  figure.axis.visible = false;
  figure.grid.visible = false;
  FM.graph.all = FM.graph.edges(figure, "#777777", 0.45);
  FM.graph.own = FM.graph.edges(figure, "#000000", 0.9);
  const { x, y } = FM.data.graph;
  const community = FM.data.features.community;
  const frames = FM.graph.squares(figure, { fill_color: { field: "colour" }, line_color: null });
  frames.data = { x, y, colour: x.map((_, k) => FM.colour(community[k])) };
  const tiles = await FM.graph.tiles();
  const nodes = new Bokeh.ColumnDataSource({ data: { url: tiles, x, y } });
  figure.image_url({
    url: { field: "url" },
    x: { field: "x" },
    y: { field: "y" },
    w: FM.graph.NODE,
    h: FM.graph.NODE,
    anchor: "center",
    source: nodes,
  });
  FM.graph.ring = FM.graph.squares(figure, { fill_color: null, line_color: "#000000", line_width: 3.5 });
  FM.graph.figure = figure;
  FM.graph.threshold();
  const place = document.getElementById("graph");
  FM.graph.view = FM.withoutOutline(await Bokeh.Plotting.show(figure, place));
  FM.graph.listen(figure, place);
};

// Draw the edges at or above the threshold; those of the selected feature lie on top.
FM.graph.threshold = () => {
  if (!FM.graph.figure) return;
  const { x, y, head, tail, weight } = FM.data.graph;
  const least = Number(document.getElementById("threshold").value);
  const empty = () => ({ xs: [], ys: [], width: [] });
  const [all, own] = [empty(), empty()];
  for (let e = 0; e < weight.length; e += 1) {
    if (weight[e] < least) continue;
    const [i, j] = [head[e], tail[e]];
    const into = i === FM.selected || j === FM.selected ? own : all;
    into.xs.push([x[i], x[j]]);
    into.ys.push([y[i], y[j]]);
    into.width.push(0.3 + 5 * weight[e] ** 2);
  }
  FM.graph.all.data = all;
  FM.graph.own.data = own;
  const k = FM.selected !== null && FM.selected < FM.live ? FM.selected : null;
  FM.graph.ring.data = k === null ? { x: [], y: [], colour: [] } : { x: [x[k]], y: [y[k]], colour: [""] };
  const shown = all.width.length + own.width.length;
  document.getElementById("edges").textContent = `S from ${least.toFixed(2)}: ${shown} of ${weight.length} edges`;
};

FM.graph.node = (event) => {
  const { x, y } = FM.data.graph;
  for (let k = 0; k < FM.live; k += 1) {
    if (Math.abs(event.x - x[k]) < FM.graph.NEAR && Math.abs(event.y - y[k]) < FM.graph.NEAR) return k;
  }
  return null;
};

FM.graph.listen = (figure, place) => FM.listen(figure, place, FM.graph.node, FM.single, FM.select);

FM.graph.pixel = (k) => {
  const { frame, el } = FM.graph.view;
  const box = el.getBoundingClientRect();
  const { x, y } = FM.data.graph;
  return [box.x + frame.x_scale.compute(x[k]), box.y + frame.y_scale.compute(y[k])];
};
