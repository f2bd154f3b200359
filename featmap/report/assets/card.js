"use strict";
// The card of a feature, and the table of a pair.

FM.LISTED = 6;

FM.link = (k, ...children) => {
  const act = (event) => {
    event.preventDefault();
    FM.select(k);
  };
  return FM.element("a", { href: FM.hash(FM.names[k]), onclick: act }, ...children);
};

// Two features' images side by side with every measure of the pair, in one direction or in both.
FM.pair = (i, j, both) => {
  const [a, b] = [FM.names[i], FM.names[j]];
  const figure = (k) => FM.element("figure", {}, FM.image(k, 128), FM.element("figcaption", {}, FM.link(k, FM.marked(FM.names[k]))));
  const head = FM.element("tr", {}, FM.element("th", {}, "measure"), FM.element("th", {}, "image of 1st, response of 2nd"));
  if (both) head.append(FM.element("th", {}, "image of 2nd, response of 1st"));
  const rows = Object.entries(FM.measures).map(([name, of]) => {
    const row = FM.element("tr", { "data-measure": name }, FM.element("th", {}, name === "profile" ? "profile S" : name));
    row.append(FM.element("td", {}, FM.number(of(i, j))));
    if (both) row.append(FM.element("td", {}, FM.number(of(j, i))));
    return row;
  });
  const table = FM.element("table", { "aria-label": `measures of ${a} and ${b}` }, head, ...rows);
  return FM.element("div", { class: "pair", "data-one": a, "data-two": b }, figure(i), figure(j), table);
};

FM.single = (k) =>
  FM.element("figure", { class: "single" }, FM.image(k, 160), FM.element("figcaption", {}, FM.element("b", {}, FM.marked(FM.names[k])), FM.element("br"), FM.facts(k)));

FM.facts = (k) => {
  const f = FM.data.features;
  const cluster = f.cluster && f.cluster[k] !== null ? `, cluster ${f.cluster[k]}` : "";
  return `activation ${FM.number(f.activation[k])}, ${f.status[k]}${cluster}`;
};

// After a validation only; features below the bound are marked wherever they are named.
FM.reliability = (k) => {
  const values = FM.data.features.reliability;
  if (!values) return null;
  return FM.unreliable.has(FM.names[k]) ? `${FM.number(values[k])}: unreliable, marked ?` : FM.number(values[k]);
};

FM.definitions = (k) => {
  const f = FM.data.features;
  const textOrNull = (value) => (value === null || value === undefined || value === "" ? null : String(value));
  const cluster = f.cluster && f.cluster[k] !== null ? f.cluster[k] : null;
  const swatch = FM.element("i", { class: "swatch", style: `background:${FM.colour(cluster)}` });
  const lines = [
    ["activation reached", FM.number(f.activation[k])],
    ["null image", FM.number(f.null_activation[k])],
    ["status", f.status[k]],
    ["start", f.start && f.start[k] === "rescued" ? "without a gradient, through dead ReLUs" : null],
    ["reliability over seeds", FM.reliability(k)],
    ["branch", textOrNull(f.branch && f.branch[k])],
    ["community", textOrNull(f.community && f.community[k])],
    ["own image is the best", f.identity && f.identity[k] !== null ? (f.identity[k] ? "yes" : "no") : null],
  ];
  const list = FM.element("dl", {});
  for (const [term, value] of lines) {
    if (value !== null) list.append(FM.element("dt", {}, term), FM.element("dd", {}, value));
  }
  if (FM.live > 0) {
    const none = FM.data.clusters.allowed ? "none" : "none (not above the nulls)";
    const text = cluster === null ? FM.element("dd", {}, none) : FM.element("dd", {}, swatch, String(cluster));
    list.append(FM.element("dt", {}, "cluster"), text);
  }
  return list;
};

// The activation map: the image is bright where the feature fires and dimmed elsewhere.
FM.activationMap = (k) => {
  const { reason, shape, largest } = FM.data.maps;
  if (reason) return FM.element("p", { class: "absent" }, `No activation map: ${reason}`);
  const [height, width] = shape[k];
  const start = shape.slice(0, k).reduce((sum, [h, w]) => sum + h * w, 0);
  const values = FM.maps.subarray(start, start + height * width);
  // The map covers the picture, which is as large as it fits into a square.
  const [tall, wide] = FM.data.sides.map((n, _, both) => (100 * n) / Math.max(...both));
  const style = `width:${wide}%;height:${tall}%;left:${(100 - wide) / 2}%;top:${(100 - tall) / 2}%`;
  const canvas = FM.element("canvas", { width, height, style, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  for (let p = 0; p < values.length; p += 1) pixels.data[4 * p + 3] = 0.88 * (255 - values[p]);
  context.putImageData(pixels, 0, 0);
  const best = values.indexOf(255);
  const where = best < 0 ? "zero everywhere" : `strongest at row ${Math.floor(best / width)}, column ${best % width}`;
  const caption = `activation map ${height} x ${width}, largest ${FM.number(largest[k])}, ${where}`;
  const image = FM.image(k, 210);
  image.alt = `${caption}, over the ${FM.describe(k)}`;
  return FM.element("figure", {}, FM.element("div", { class: "stack" }, image, canvas), FM.element("figcaption", {}, caption));
};

FM.curves = { built: false };

FM.curves.show = async (k) => {
  const steps = FM.data.steps;
  const values = Array.from(FM.curve.subarray(k * steps.length, (k + 1) * steps.length));
  const data = { step: steps, activation: values };
  if (!FM.curves.built) {
    const figure = new Bokeh.Plotting.Figure({
      sizing_mode: "stretch_width",
      height: 130,
      tools: "",
      toolbar_location: null,
      x_axis_label: "step",
      y_axis_label: "activation",
      min_border: 4,
    });
    FM.curves.source = new Bokeh.ColumnDataSource({ data });
    figure.line({ x: { field: "step" }, y: { field: "activation" }, line_width: 2, line_color: "#0072b2", source: FM.curves.source });
    figure.add_tools(new Bokeh.HoverTool({ tooltips: [["step", "@step"], ["activation", "@activation{0.000}"]], mode: "vline" }));
    FM.curves.built = true;
    await Bokeh.Plotting.show(figure, document.getElementById("curve"));
  } else {
    FM.curves.source.data = data;
  }
  const [first, last] = [values[0], values.at(-1)].map(FM.number);
  document.getElementById("curve").setAttribute("aria-label", `descent curve of ${FM.names[k]}: activation from ${first} to ${last}`);
};

FM.neighbours = (ranked) =>
  FM.element(
    "ol",
    { class: "thumbnails" },
    ...ranked.map(([k, s]) => FM.element("li", {}, FM.link(k, FM.thumbnail(k), FM.element("span", {}, FM.short(k)), FM.element("b", {}, FM.number(s))))),
  );

// A feature of another layer, with a link to its page if it has one.
FM.otherPage = (href, name) => (href ? FM.element("a", { href: href + FM.hash(name) }, FM.marked(name)) : FM.marked(name));

// Responses of other layers to the image; collapsed if there are many layers.
FM.otherLayers = (k) =>
  FM.data.cross.map(({ layer, href, strongest, similar }) => {
    const rows = strongest[k].map(([name, z, a]) =>
      FM.element("tr", {}, FM.element("td", {}, FM.otherPage(href, name)), FM.element("td", {}, FM.number(z)), FM.element("td", {}, FM.number(a))),
    );
    const head = ["strongest responses", "standard deviations", "activation"].map((text) => FM.element("th", {}, text));
    const alike = FM.element("p", {}, similar[k].length ? "most similar by profile: " : "no similarity is defined");
    similar[k].forEach(([name, s], at) => alike.append(at ? ", " : "", FM.otherPage(href, name), ` ${FM.number(s)}`));
    const best = strongest[k].length ? `: strongest ${FM.marked(strongest[k][0][0])}` : "";
    const table = FM.element("table", {}, FM.element("tr", {}, ...head), ...rows);
    const details = FM.element("details", {}, FM.element("summary", {}, `In ${layer}${best}`), table, alike);
    details.open = FM.data.cross.length <= 3;
    return details;
  });

FM.reproduction = (k) => {
  const { command, python, reproduction_notes: reproductionNotes } = FM.data;
  const line = command[k] === null ? "no command-line options give this run's recipe; use the Python code" : command[k];
  const notes = reproductionNotes.map((note) => FM.element("p", {}, note));
  return [FM.element("h3", {}, "Reproduce this image"), FM.element("pre", {}, line), FM.element("pre", {}, python[k]), ...notes];
};

// What is shown of the images: stretched, or the stored pixels.
FM.displayed = () => {
  const stored = () => document.body.classList.contains("stored");
  const text = () => (stored() ? "stored pixels" : FM.data.display.note);
  const note = FM.element("span", {}, text());
  const other = () => (stored() ? "stretch the contrast" : "show the stored pixels");
  const act = () => {
    document.body.classList.toggle("stored");
    note.textContent = text();
    button.textContent = other();
    button.setAttribute("aria-pressed", String(stored()));
  };
  const button = FM.element("button", { type: "button", class: "display", "aria-pressed": String(stored()), onclick: act }, other());
  return [FM.element("br"), note, FM.element("br"), button];
};

FM.card = (k) => {
  FM.shownOnCard = k;
  const place = document.getElementById("card");
  const ranked = FM.ranked(k);
  const title = FM.element("h2", {}, FM.element("a", { href: FM.hash(FM.names[k]), title: "permanent link" }, FM.marked(FM.names[k])));
  const shown = FM.element("figure", {}, FM.image(k, 210), FM.element("figcaption", {}, `seed ${FM.data.seed}; ${FM.data.coding}`, ...FM.displayed()));
  const images = FM.element("div", { class: "images" }, shown);
  const descent = document.getElementById("descent");
  const children = [title, images, ...FM.examples(k), FM.definitions(k), descent];
  if (ranked.length) {
    const half = Math.min(FM.LISTED, Math.ceil(ranked.length / 2)); // no feature is in both lists
    const opposed = ranked.slice(half).slice(-FM.LISTED).toReversed();
    const of = `of ${FM.live} features, by profile similarity S`;
    children.push(FM.element("h3", { title: of }, "Nearest"), FM.neighbours(ranked.slice(0, half)));
    children.push(FM.element("h3", { title: of }, "Most opposed"), FM.neighbours(opposed));
  } else if (FM.live > 0) {
    children.push(FM.element("p", {}, k < FM.live ? "Its similarity to others is undefined." : `It is ${FM.data.features.status[k]}: it takes no part in map, graph and clusters.`));
  }
  children.push(...FM.otherLayers(k), ...FM.reproduction(k));
  place.replaceChildren(...children);
  FM.whenImages(() => {
    if (FM.shownOnCard !== k) return; // another feature was selected while the images were read
    images.append(FM.activationMap(k));
    descent.hidden = false;
    FM.curves.show(k);
  });
};
