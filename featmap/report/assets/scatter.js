"use strict";
// All pairs of features by their two similarities: over maximising images (across) and over photographs (up). The pairs
// are computed from the two S of the page; few are drawn as points, many as the number of pairs at each place.

FM.scatter = { built: false };
FM.scatter.POINTS = 6000; // most pairs that are drawn as points
FM.scatter.CELL = 2; // pixels of a place where pairs are counted
FM.scatter.NEAR = 9; // pixels within which a pair is found
FM.scatter.BUCKETS = 160; // rows and columns of the grid that finds pairs
FM.scatter.PARTED = 10; // marked pairs in each direction

// Pairs of which both similarities are defined: positions of both features in `common`, and coordinates.
FM.scatter.read = () => {
  const { images, photographs } = FM.compared;
  const common = FM.maps.images.order.filter((k) => photographs.place[k] >= 0);
  const most = (common.length * (common.length - 1)) / 2;
  const pairs = { common, count: 0, one: new Uint16Array(most), two: new Uint16Array(most), x: new Float32Array(most), y: new Float32Array(most) };
  for (let a = 0; a < common.length; a += 1) {
    for (let b = a + 1; b < common.length; b += 1) {
      const [x, y] = [FM.similarity(images, common[a], common[b]), FM.similarity(photographs, common[a], common[b])];
      if (!Number.isFinite(x) || !Number.isFinite(y)) continue;
      const p = pairs.count;
      [pairs.one[p], pairs.two[p], pairs.x[p], pairs.y[p]] = [a, b, x, y];
      pairs.count += 1;
    }
  }
  return pairs;
};

FM.scatter.features = (p) => [FM.scatter.pairs.common[FM.scatter.pairs.one[p]], FM.scatter.pairs.common[FM.scatter.pairs.two[p]]];

// Ends of both axes: all values with a margin.
FM.scatter.limits = ({ x, y, count }) => {
  let [low, high] = [0, 0];
  for (let p = 0; p < count; p += 1) {
    low = Math.min(low, x[p], y[p]);
    high = Math.max(high, x[p], y[p]);
  }
  const margin = 0.04 * (high - low || 1);
  return [low - margin, high + margin];
};

// Pairs sorted by the bucket of a grid that they lie in: `sorted` from `first[bucket]` to `first[bucket + 1]`.
FM.scatter.sort = ({ x, y, count }, [low, high]) => {
  const side = FM.scatter.BUCKETS;
  const bucket = (value) => Math.max(0, Math.min(side - 1, Math.floor(((value - low) / (high - low)) * side)));
  const first = new Uint32Array(side * side + 1);
  for (let p = 0; p < count; p += 1) first[bucket(y[p]) * side + bucket(x[p]) + 1] += 1;
  for (let b = 0; b < side * side; b += 1) first[b + 1] += first[b];
  const next = first.slice();
  const sorted = new Uint32Array(count);
  for (let p = 0; p < count; p += 1) {
    const b = bucket(y[p]) * side + bucket(x[p]);
    sorted[next[b]] = p;
    next[b] += 1;
  }
  return { bucket, first, sorted };
};

// Product-moment correlation of the two similarities over the pairs; NaN without any variance.
FM.scatter.correlation = ({ x, y, count }) => {
  const mean = (values) => values.subarray(0, count).reduce((sum, v) => sum + v, 0) / count;
  const [a, b] = [mean(x), mean(y)];
  let [xx, yy, xy] = [0, 0, 0];
  for (let p = 0; p < count; p += 1) {
    const [u, v] = [x[p] - a, y[p] - b];
    xx += u * u;
    yy += v * v;
    xy += u * v;
  }
  return xy / Math.sqrt(xx * yy);
};

// Pairs that part most: those with the largest S over photographs less S over images, and those with the smallest.
FM.scatter.parted = ({ x, y, count }) => {
  const found = (sign) => {
    const best = []; // by falling difference
    for (let p = 0; p < count; p += 1) {
      const apart = sign * (y[p] - x[p]);
      if (apart <= 0 || (best.length === FM.scatter.PARTED && apart <= best.at(-1)[1])) continue;
      const at = best.findIndex(([, other]) => other < apart);
      best.splice(at < 0 ? best.length : at, 0, [p, apart]);
      best.length = Math.min(best.length, FM.scatter.PARTED);
    }
    return best.map(([p]) => p);
  };
  return { above: found(1), below: found(-1) };
};

FM.scatter.points = (figure, style) => {
  const source = new Bokeh.ColumnDataSource({ data: { x: [], y: [] } });
  figure.scatter({ x: { field: "x" }, y: { field: "y" }, ...style, source });
  return source;
};

FM.scatter.build = async () => {
  const own = FM.scatter;
  if (own.built) return;
  own.built = true;
  own.pairs = own.read();
  own.ends = own.limits(own.pairs);
  own.grid = own.sort(own.pairs, own.ends);
  own.marked = own.parted(own.pairs);
  const side = Math.max(300, FM.side() - 100);
  const [start, end] = own.ends;
  const figure = new Bokeh.Plotting.Figure({
    tools: "pan,box_zoom,wheel_zoom,reset",
    active_scroll: "wheel_zoom",
    toolbar_location: "above",
    min_border: 2,
    x_axis_label: "S over maximising images",
    y_axis_label: "S over photographs",
    frame_width: side,
    frame_height: side,
    x_range: new Bokeh.Range1d({ start, end }),
    y_range: new Bokeh.Range1d({ start, end }),
  });
  figure.toolbar.logo = null;
  const equal = new Bokeh.ColumnDataSource({ data: { x: own.ends, y: own.ends } });
  figure.line({ x: { field: "x" }, y: { field: "y" }, line_color: "#999999", line_width: 1, line_dash: "dashed", source: equal });
  const pale = [158, 196, 226]; // a single pair is visible
  const ink = [8, 48, 107];
  const shade = (k) => `rgb(${pale.map((v, c) => Math.round(v + ((ink[c] - v) * k) / 255)).join(",")})`;
  own.mapper = new Bokeh.LogColorMapper({ palette: Array.from({ length: 256 }, (_, k) => shade(k)), nan_color: "rgba(0, 0, 0, 0)", low: 1, high: 2 });
  own.counts = new Bokeh.ColumnDataSource({ data: { image: [], x: [], y: [], width: [], height: [] } });
  figure.image({
    image: { field: "image" },
    x: { field: "x" },
    y: { field: "y" },
    dw: { field: "width" },
    dh: { field: "height" },
    color_mapper: own.mapper,
    source: own.counts,
  });
  own.all = own.points(figure, { size: 6, fill_color: "#0072b2", fill_alpha: 0.45, line_color: null });
  own.ofSelected = own.points(figure, { size: own.pairs.common.length > 200 ? 4 : 6, fill_color: "#e69f00", fill_alpha: 0.95, line_color: "#7a5200", line_width: 0.5 });
  own.rings = own.points(figure, { size: 11, fill_color: null, line_color: "#d4007f", line_width: 1.8 });
  own.pin = own.points(figure, { marker: "square", size: 15, fill_color: null, line_color: "#000000", line_width: 2.5 });
  own.figure = figure;
  own.list();
  own.draw();
  own.mark();
  const again = () => {
    cancelAnimationFrame(own.frame);
    own.frame = requestAnimationFrame(own.draw);
  };
  for (const range of [figure.x_range, figure.y_range]) range.change.connect(again);
  const place = document.getElementById("scatter");
  own.view = FM.withoutOutline(await Bokeh.Plotting.show(figure, place));
  const rows = ["images", "photographs"].map((stimuli) => FM.rowOf(stimuli, FM.compared[stimuli]));
  FM.listen(figure, place, own.find, (pair) => FM.pair(...pair, false, rows), FM.pinPair);
};

// Draw the pairs inside the ranges: as points where they are few, otherwise how many lie at each place.
FM.scatter.draw = () => {
  const { figure, pairs, POINTS, CELL } = FM.scatter;
  const [{ start: left, end: right }, { start: low, end: high }] = [figure.x_range, figure.y_range];
  const { x, y, count } = pairs;
  const side = Math.round(figure.frame_width / CELL);
  const counts = new Float32Array(side * side).fill(Number.NaN);
  const data = { x: [], y: [] };
  let [inside, most] = [0, 2];
  for (let p = 0; p < count; p += 1) {
    if (x[p] < left || x[p] >= right || y[p] < low || y[p] >= high) continue;
    inside += 1;
    if (inside <= POINTS) {
      data.x.push(x[p]);
      data.y.push(y[p]);
    }
    const cell = Math.floor(((y[p] - low) / (high - low)) * side) * side + Math.floor(((x[p] - left) / (right - left)) * side);
    counts[cell] = (counts[cell] || 0) + 1;
    if (counts[cell] > most) most = counts[cell];
  }
  const few = inside <= POINTS;
  FM.scatter.all.data = few ? data : { x: [], y: [] };
  FM.scatter.mapper.high = most;
  const image = Bokeh.require("core/util/ndarray").ndarray(counts, { shape: [side, side] });
  const none = { image: [], x: [], y: [], width: [], height: [] };
  FM.scatter.counts.data = few ? none : { image: [image], x: [left], y: [low], width: [right - left], height: [high - low] };
};

FM.scatter.coordinates = (numbers) => ({ x: numbers.map((p) => FM.scatter.pairs.x[p]), y: numbers.map((p) => FM.scatter.pairs.y[p]) });

// Number of the pair of two features; -1 if it is not drawn.
FM.scatter.number = (i, j) => {
  const { common, one, two, count } = FM.scatter.pairs;
  const [a, b] = [common.indexOf(i), common.indexOf(j)].toSorted((left, right) => left - right);
  for (let p = 0; p < count; p += 1) if (one[p] === a && two[p] === b) return p;
  return -1;
};

// Mark the pairs that part most, those of the selected feature, and the pinned one.
FM.scatter.mark = () => {
  const own = FM.scatter;
  if (!own.figure) return;
  const { common, one, two, count } = own.pairs;
  const at = FM.selected === null ? -1 : common.indexOf(FM.selected);
  const selected = [];
  for (let p = 0; p < count; p += 1) if (one[p] === at || two[p] === at) selected.push(p);
  own.ofSelected.data = own.coordinates(selected);
  own.rings.data = own.coordinates([...own.marked.above, ...own.marked.below]);
  const pinned = FM.pinned === null ? -1 : own.number(...FM.pinned);
  own.pin.data = own.coordinates(pinned < 0 ? [] : [pinned]);
};

// The pair nearest to the pointer, by pixels; of several at one place, one that parts most.
FM.scatter.find = (event) => {
  const { figure, grid, pairs, NEAR, BUCKETS } = FM.scatter;
  const unit = ({ start, end }) => (end - start) / figure.frame_width;
  const [across, up] = [unit(figure.x_range), unit(figure.y_range)];
  let [best, least, apart] = [null, NEAR * NEAR, -1];
  for (let row = grid.bucket(event.y - NEAR * up); row <= grid.bucket(event.y + NEAR * up); row += 1) {
    const [from, to] = [row * BUCKETS + grid.bucket(event.x - NEAR * across), row * BUCKETS + grid.bucket(event.x + NEAR * across)];
    for (let at = grid.first[from]; at < grid.first[to + 1]; at += 1) {
      const p = grid.sorted[at];
      const away = ((pairs.x[p] - event.x) / across) ** 2 + ((pairs.y[p] - event.y) / up) ** 2;
      const difference = Math.abs(pairs.y[p] - pairs.x[p]);
      if (away < least || (away === least && difference > apart)) [best, least, apart] = [p, away, difference];
    }
  }
  return best === null ? null : FM.scatter.features(best);
};

// The pairs that part most, as a table: what the plot shows, in words and for the keyboard.
FM.scatter.list = () => {
  const { pairs, marked } = FM.scatter;
  const text = `${pairs.count.toLocaleString("en")} pairs of ${pairs.common.length} features; their two similarities correlate by ${FM.number(FM.scatter.correlation(pairs))}`;
  const fewer = Object.keys(FM.compared).every((stimuli) => FM.compared[stimuli] === FM.maps[stimuli]) ? "" : " (both centred over these features)";
  document.getElementById("paired").textContent = text + fewer;
  document.getElementById("scatter").setAttribute("aria-label", `${text}; the pairs that part most are listed below`);
  const line = (p) => {
    const [i, j] = FM.scatter.features(p);
    const [x, y] = [pairs.x[p], pairs.y[p]];
    const words = `${FM.marked(FM.names[i])} and ${FM.marked(FM.names[j])}`;
    const open = FM.element("button", { type: "button", class: "parted", onclick: () => FM.pinPair([i, j]) }, FM.thumbnail(i), FM.thumbnail(j), FM.element("span", {}, words));
    const values = [x, y, y - x].map((value) => FM.element("td", { class: "number" }, FM.number(value)));
    return FM.element("tr", {}, FM.element("td", {}, open), ...values);
  };
  const table = (title, numbers) => {
    const heads = ["pair", "S over images", "S over photographs", "difference"].map((name) => FM.element("th", { scope: "col" }, name));
    return FM.element("table", {}, FM.element("caption", {}, title), FM.element("tr", {}, ...heads), ...numbers.map(line));
  };
  const parts = [];
  if (marked.below.length) parts.push(table("More alike at the optimum than on photographs", marked.below));
  if (marked.above.length) parts.push(table("More alike on photographs than at the optimum", marked.above));
  document.getElementById("parted").replaceChildren(...parts);
};

// Position of the point of two features in the window, in pixels; tests move the mouse there.
FM.scatter.pixel = (i, j) => {
  const { view, pairs } = FM.scatter;
  const box = view.el.getBoundingClientRect();
  const p = FM.scatter.number(i, j);
  return [box.x + view.frame.x_scale.compute(pairs.x[p]), box.y + view.frame.y_scale.compute(pairs.y[p])];
};
