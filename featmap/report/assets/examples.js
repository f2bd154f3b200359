"use strict";
// Dataset examples on the card of a feature: the part of a photograph that its most active position sees, with the
// region that fires as it is and the rest faded, as on the sheets of the run.

FM.EXAMPLE_SIDE = 138;
FM.OUTLINE = 2;
FM.FADE = { pale: 0.35, faded: 0.55, veil: 165, outline: [230, 0, 90], halo: [255, 255, 255] };

// First position of each example's map in the blob, by feature and example.
FM.exampleStarts = () => {
  let start = 0;
  return FM.data.examples.rows.map((row) =>
    row.map(({ part }) => {
      const own = start;
      start += part[2] * part[3];
      return own;
    }),
  );
};

// Linear interpolation between centres, constant beyond them: the two neighbours of a place and the weight of the second.
FM.between = (centres, place) => {
  let second = centres.findIndex((centre) => centre >= place);
  if (second === 0 || centres.length === 1) return [0, 0, 0];
  if (second < 0) second = centres.length;
  if (second === centres.length) return [second - 1, second - 1, 0];
  return [second - 1, second, (place - centres[second - 1]) / (centres[second] - centres[second - 1])];
};

// Whether each pixel of a drawing fires: its activation is above half of the largest one of the whole photograph.
FM.firing = (example, start, height, width) => {
  const { y, x } = FM.data.examples;
  const [top, left, rows, columns] = example.part;
  const [first, end, from, to] = example.box;
  const values = FM.exampleMaps.subarray(start, start + rows * columns);
  const places = (centres, low, high, count) =>
    Array.from({ length: count }, (_, k) => FM.between(centres, low - 0.5 + ((k + 0.5) * (high - low)) / count));
  const down = places(y.slice(top, top + rows), first, end, height);
  const across = places(x.slice(left, left + columns), from, to, width);
  const fires = new Uint8Array(height * width);
  down.forEach(([a, b, v], i) => {
    across.forEach(([c, d, w], j) => {
      const upper = (1 - w) * values[a * columns + c] + w * values[a * columns + d];
      const lower = (1 - w) * values[b * columns + c] + w * values[b * columns + d];
      fires[i * width + j] = (1 - v) * upper + v * lower > 127.5 ? 1 : 0;
    });
  });
  return fires;
};

// Remove the pixels of a region that are nearer than a width to one outside; the edge of the drawing is none.
FM.shrink = (region, height, width, reach) => {
  const pass = (from, step, length, along) => {
    const to = new Uint8Array(from.length);
    for (let p = 0; p < from.length; p += 1) {
      const at = along(p);
      let kept = 1;
      for (let d = Math.max(-reach, -at); d <= Math.min(reach, length - 1 - at); d += 1) kept &= from[p + d * step];
      to[p] = kept;
    }
    return to;
  };
  const rows = pass(region, width, height, (p) => Math.floor(p / width));
  return pass(rows, 1, width, (p) => p % width);
};

FM.invert = (region) => region.map((inside) => 1 - inside);

FM.fade = (pixels, all, height, width) => {
  const { pale, faded, veil, outline, halo } = FM.FADE;
  const shrunk = (region) => FM.shrink(region, height, width, FM.OUTLINE);
  const wide = FM.invert(shrunk(FM.invert(shrunk(all)))); // specks have no room inside their outline
  const fires = all.map((inside, p) => inside & wide[p]);
  const inner = shrunk(fires);
  const outer = shrunk(FM.invert(fires));
  for (let p = 0; p < fires.length; p += 1) {
    const gray = 0.299 * pixels[4 * p] + 0.587 * pixels[4 * p + 1] + 0.114 * pixels[4 * p + 2];
    for (let c = 4 * p; c < 4 * p + 3; c += 1) {
      if (fires[p] && !inner[p]) pixels[c] = outline[c - 4 * p];
      else if (!fires[p] && !outer[p]) pixels[c] = halo[c - 4 * p];
      else if (!fires[p]) pixels[c] = (1 - faded) * (pale * pixels[c] + (1 - pale) * gray) + faded * veil;
    }
  }
};

FM.drawExample = async (canvas, example, start) => {
  const picture = new Image();
  picture.src = FM.photographs[example.picture];
  await picture.decode();
  const { width, height } = canvas;
  const [top, bottom, left, right] = FM.data.examples.frames[example.picture];
  const [first, end, from, to] = example.box;
  const [sx, sy] = [picture.naturalWidth / (right - left), picture.naturalHeight / (bottom - top)];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, (from - left) * sx, (first - top) * sy, (to - from) * sx, (end - first) * sy, 0, 0, width, height);
  const drawn = context.getImageData(0, 0, width, height);
  FM.fade(drawn.data, FM.firing(example, start, height, width), height, width);
  context.putImageData(drawn, 0, 0);
  canvas.dataset.drawn = "yes";
};

// An example drawn at most `side` pixels wide and high; `title` says what it is.
FM.exampleCanvas = (example, start, side, title) => {
  const [first, end, from, to] = example.box;
  const scale = side / Math.max(end - first, to - from);
  const [height, width] = [Math.max(1, Math.round((end - first) * scale)), Math.max(1, Math.round((to - from) * scale))];
  // twice as many pixels as are shown, for sharp displays
  const canvas = FM.element("canvas", { width: 2 * width, height: 2 * height, style: `width:${width}px`, role: "img", "aria-label": title, title });
  FM.whenImages(() => FM.drawExample(canvas, example, start));
  return canvas;
};

FM.exampleText = (example) => {
  const [first, end, from, to] = example.box;
  const place = example.position[0] === null ? "the same everywhere" : `largest at row ${example.position[0]}, column ${example.position[1]}`;
  const kind = example.best ? `best photograph ${example.number}` : `photograph at percentile ${example.number}`;
  return `${kind}: ${FM.data.examples.names[example.photograph]}, response ${FM.number(example.response)}, activation ${FM.number(example.activation)}, ${place}; ${example.crop}, rows ${first} to ${end - 1}, columns ${from} to ${to - 1}`;
};

FM.example = (example, start) => {
  const { names, links } = FM.data.examples;
  const [name, link] = [names[example.photograph], links[example.photograph]];
  const canvas = FM.exampleCanvas(example, start, FM.EXAMPLE_SIDE, FM.exampleText(example));
  const label = FM.element("b", {}, example.best ? FM.number(example.response) : `${example.number} %: ${FM.number(example.response)}`);
  const file = link === null ? FM.element("span", {}, name) : FM.element("a", { href: link }, name);
  return FM.element("li", {}, FM.element("div", { class: "place" }, canvas), label, file);
};

FM.hasExample = (k) => Boolean(FM.data.examples?.embedded && FM.data.examples.rows[k].length > 0);

FM.bestExample = (k, side) => {
  FM.exampleAt ??= FM.exampleStarts();
  const canvas = FM.exampleCanvas(FM.data.examples.rows[k][0], FM.exampleAt[k][0], side, FM.describe(k));
  return FM.element("div", { class: "place", style: `width:${side}px;height:${side}px` }, canvas);
};

FM.LEFT_OUT = "The photographs that excite it most are left out, so that this page can be shared: featmap atlas RUN --embed-photographs includes them.";

FM.examples = (k) => {
  const { examples } = FM.data;
  const absent = (text) => [FM.element("p", { class: "absent" }, text)];
  if (FM.data.stimuli && !examples?.embedded) {
    const why = examples ? FM.LEFT_OUT : "The run recorded none that excite it most.";
    return absent(`There is no maximising image: photographs are the only stimuli of this map. ${why}`);
  }
  if (!examples) return [];
  if (!examples.embedded) return absent(FM.LEFT_OUT);
  FM.exampleAt ??= FM.exampleStarts();
  const row = examples.rows[k];
  if (row.length === 0) return absent("It responds to all photographs alike: none excites it more than others.");
  const list = (best) =>
    FM.element("ul", { class: "examples" }, ...row.map((one, at) => (one.best === best ? FM.example(one, FM.exampleAt[k][at]) : null)));
  const note = `${examples.note}; number: mean activation; ${examples.coding}`;
  return [
    FM.element("h3", { title: note }, "Photographs that excite it most"),
    list(true),
    FM.element("h3", { title: note }, "At percentiles of its responses to photographs"),
    list(false),
    FM.element("p", { class: "note" }, note),
  ];
};
