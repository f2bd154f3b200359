"use strict";
// Clusters with their mosaics, and the search by name.

// Within one layer the channel is enough.
FM.short = (k) => (FM.data.layer === "" ? FM.names[k] : FM.marked(FM.names[k]).split(":").at(-1));

FM.mosaic = (members) =>
  FM.element("ul", { class: "mosaic" }, ...members.map((k) => FM.element("li", {}, FM.link(k, FM.thumbnail(k), FM.element("span", {}, FM.short(k))))));

FM.cluster = ({ number, members, within, outside, central, activation }) => {
  const swatch = FM.element("i", { class: "swatch", style: `background:${FM.colour(number)}` });
  const [of, k] = [FM.stimuli === "images" ? "activation" : "response", FM.shown.order[central]];
  const statistics = `${members.length} features; mean S within ${FM.number(within)}, to the others ${FM.number(outside)}; mean ${of} ${FM.number(activation)}; most central: `;
  return FM.element(
    "section",
    { "data-cluster": number },
    FM.element("h3", {}, swatch, `Cluster ${number}`),
    FM.element("p", {}, statistics, FM.link(k, FM.marked(FM.names[k]))),
    FM.mosaic(members.map((at) => FM.shown.order[at])),
  );
};

FM.clusters = () => {
  const place = document.getElementById("clusters");
  const { clusters, order, place: placeOf, walk } = FM.shown;
  const { sentence, list } = clusters;
  const grouped = new Set(list.flatMap(({ members }) => members.map((at) => order[at])));
  const live = order.filter((k) => !grouped.has(k));
  const others = walk.filter((k) => placeOf[k] < 0);
  const outside = FM.stimuli === "images" ? "Dead, unconverged or not finite" : "Constant or not finite over photographs";
  const children = [FM.element("p", { class: "sentence" }, sentence), ...list.map(FM.cluster)];
  const more = (title, members) => {
    if (members.length) children.push(FM.element("section", {}, FM.element("h3", {}, title), FM.mosaic(members)));
  };
  more(list.length ? "In no cluster" : "All live features, in the order of the map", live);
  more(FM.data.layer === "" ? "All units" : `${outside}: not in map, graph and clusters`, others);
  place.replaceChildren(...children);
};

// Names that contain the text, exact channels first: "17" finds inception4a:17 before inception4a:170.
FM.find = (text) => {
  const wanted = text.trim().toLowerCase();
  if (wanted === "") return [];
  const rank = (name) => {
    const low = name.toLowerCase();
    if (low === wanted || low.endsWith(`:${wanted}`)) return 0;
    if (low.startsWith(wanted) || low.includes(`:${wanted}`)) return 1;
    return low.includes(wanted) ? 2 : 3;
  };
  const keyed = FM.names.map((name, k) => [rank(name), k]).filter(([key]) => key < 3);
  return keyed.toSorted((a, b) => a[0] - b[0] || a[1] - b[1]).slice(0, 10).map(([, k]) => k);
};

FM.search = () => {
  const field = document.getElementById("search");
  const list = document.getElementById("matches");
  const close = () => {
    list.hidden = true;
  };
  const choose = (k) => {
    FM.select(k);
    field.value = "";
    close();
    field.blur();
  };
  const update = () => {
    const matches = FM.find(field.value);
    const items = matches.map((k) => {
      const act = (event) => {
        event.preventDefault();
        choose(k);
      };
      return FM.element("li", { role: "option", onpointerdown: act }, FM.thumbnail(k), FM.marked(FM.names[k]));
    });
    const none = FM.element("li", { class: "none" }, `no feature of this page matches ${field.value}`);
    list.replaceChildren(...(items.length ? items : [none]));
    list.hidden = field.value.trim() === "";
  };
  field.addEventListener("input", update);
  field.addEventListener("focus", update);
  field.addEventListener("blur", close);
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && FM.find(field.value).length) choose(FM.find(field.value)[0]);
    if (event.key === "Escape") field.blur();
  });
};
