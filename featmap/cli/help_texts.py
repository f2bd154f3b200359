"""Texts that `--help` prints below the options of each command: what it writes and how to read it.

A paragraph that begins with a backspace character keeps its line breaks, as click has it.
"""

from __future__ import annotations

PHOTOGRAPHS = """
Photographs are all images that Pillow reads, in the folder or zip and its sub-folders: the first frame, turned as its
EXIF data say, the shorter side resized and the centre cropped. 16-bit grey images are scaled to 8 bits, transparent
ones are put on white. Links are followed, and each file is read once. What is left out (hidden files, other formats) is
counted by reason, in the output and under "photographs" in manifest.json. Every file is opened before anything is
written: all that are broken are named, and --skip-broken goes on without them.
"""

SIMILARITY = (
    """
How it works: every feature's maximising image is made by gradient descent from the same noise. A[i, j] is the mean
activation of feature j on the image of feature i, measured in the unchanged network. Co-activation C, shown in the
heatmap, is the share of its own best response that feature j gives to image i, both above the response to the null
image. Profile similarity S is the correlation of two features' responses over all images; neighbours and clusters
are computed from S. Of each response the square root is taken first, with its sign, because a few very large responses
would decide a correlation otherwise; then each feature is standardised and the mean of each image is subtracted. S
without roots, as in versions up to 0.2, is the measure linear_profile. A run of such a version is read with its own S;
its command computes S and all that follows from it anew, and keeps the images.

Ctrl-C stops a run; the same command resumes it. Two processes never write to the same folder.

Files of the run folder (tables: .parquet, up to 2^24 values also .csv):

\b
  arrays.zarr                images, A, descent curves, statuses, with labels;
                             xarray.open_zarr reads it
  activations, coactivation, relative, selective, profile
                             square tables, both axes labelled layer:channel;
                             undefined: NaN, and empty in CSV; linear_profile
                             with --measure linear_profile
  features                   one row per feature: status, activation, branch,
                             cluster, nearest neighbours; number of clearly
                             different facets (see `featmap maximise --help`)
  clusters.json              clusters, modularity of each Louvain run, and all
                             draws of the nulls (20 above 4,000 features)
  graph.graphml              nearest-neighbour graph of S with its communities
  heatmap, features, neighbours (.png), heatmap.svg, features.pdf
                             figures; the PDF has pages of A4
  facets.csv, facets.png, facets.pdf, facets/
                             with --facets: images of each feature that differ
  photographs_profile, photographs_features, photographs_clusters.json,
  photographs_graph.graphml, photographs_heatmap (.png, .svg)
                             with --photographs: the same for photographs
  photographs_agreement, photographs_disagreements; a figure of the former
                             how far the two maps agree: for each feature the
                             correlation of its two rows of S, with interval,
                             ceiling, and overlap of its 5 nearest features;
                             the 50 pairs that part most each way
  photographs_compared_profile, photographs_compared_profile_of_images
                             S of the features compared, where not all of
                             that map are (it is centred over these)
  examples                   with --photographs, a row per example of each
                             feature: photograph, response, place, box
  examples.nc                their activation maps (xarray.open_dataset)
  examples, example-crops (.png, .pdf)
                             sheets: a row per feature, its image and these
                             photographs, whole and cropped to the place
  atlas.html                 a page to explore all of it
  units/                     record of each batch with its SHA-256, by which
                             a run is resumed
  manifest.json              command, settings, seeds, versions, timings,
                             results, SHA-256 of weights and files; copied to
                             .copy/

Status of a feature: live; dead (it had no gradient, not even through dead ReLUs and their like in the first steps,
or one of rounding only, as where a normalisation over positions fixes its mean whatever the image); unconverged (its
response did not rise above that to the null image); not-finite. Similarities, clusters and averages take live features.
Start: gradient, or rescued (it had none on the noise and got its first one through its dead ReLUs, as is normal for
half of a real network's features).

Photographs: --photographs FOLDER also records the responses of all recorded layers to photographs, in batches of their
own (photograph_A in arrays.zarr), at the size of the images. They make a second map, which is another answer: two
features may be excited by the same optimum and respond to different photographs, and the reverse. Its S, clusters,
graph and neighbours have the same formulas with photographs in the place of images; where there are very many
photographs, the null models are drawn from evenly spaced ones. The output says how far the two maps agree: correlation
of S over pairs, ARI of their communities, and the same of the maps of two random halves of the photographs, which is
what the choice of photographs allows. Then the ceiling: how far S over one best photograph of each feature, chosen in
one half, agrees with S over the other half, and the share of it that the images reach there; its interval covers which
features were mapped, not which photographs were given. --stimuli photographs makes this map alone, without images, in
files of plain names: no co-activation, identity rate, statuses or sheets of images. --limit N takes N photographs,
evenly spaced in the order of their names. A folder with other files or names is another run.

Examples: for each feature shown, the photographs of its largest responses (nine; ties in the order of names) and those
at the 50th, 90th and 99th percentile. Photographs with the same pixels at the run's size count once. y and x are the
position of the largest activation in the layer's grid; top, bottom, left and right are the pixels that it sees (its
receptive field, clipped at the border) in the photograph at the run's size; crop says so, or why the box is the whole
image: the field covers it, is not known or lies in the padding, or the activation is the same everywhere. On sheets and
cards the part with more than half of the largest activation is outlined, the rest faded. The first 24 features are on
the .png, 512 on pages. The atlas shows examples with --embed-photographs only, since a page is made to be shared:
otherwise it holds neither names nor parts of photographs. Tables and sheets hold both, manifest.json the path.

With several layers, the files of each layer are in a folder of its name. Several layers, and --probe-layer, add for
images of layer l and responses of layer k:

\b
  cross/l-to-k/activations, relative, selective, profile, heatmap
                             rows are features of l, columns features of k
  cross/l-to-k/coactivation  only if k is mapped too: it needs the images of
                             k's own features
  cross/l-to-k/partners      for each feature of l, the feature of k with the
                             most similar profile
  cross/layers               one row per pair of layers: mean S of the best
                             partners, and the same by chance; .png and .svg

A profile between layers is computed over the images of all mapped layers. With --photographs, files in cross/ whose
names begin with photographs_ hold the same over photographs: profile, heatmap, partners, layers, neighbours, graph.

Whole networks: --layer all takes the blocks, the outermost modules that compute a grid by convolutions and are not
plain containers: 12 of GoogLeNet (5,808 features), 16 of InceptionV3 (10,448), 17 of ResNet50 (its first convolution
and each residual block; 15,168). --layer convs takes every convolution: 53 of ResNet50 (26,560 features). Every image
is made once, and every layer responds to it.

From 3,000 features in several layers on, S of all features over the images of all layers is computed block by block,
and only the best values are stored, instead of tables for each pair of layers (Python computes any pair's tables when
they are read: result.crossings["conv1", "inception4a"]):

\b
  cross/neighbours.parquet   for each feature its nearest ones, in any layer
  cross/partners.parquet     for each feature its best partner in each layer
  cross/graph.graphml        the graph of the nearest ones

Several processes: --engine ray hands batches to workers, the largest first. Each loads the network once, takes a GPU
or --threads cores, and writes to the run folder itself, so all machines must share that folder. A batch whose worker
dies is tried three times, then left out and named: the command ends with exit status 3, and the same command
computes what is missing. Without --threads, each of n --workers takes its share of this machine's threads. Two
workers on two cores were 1.85 times as fast as one process (analyses/benchmarks/README.md).

Reproducibility: an image depends on network, recipe, seed and unit, not on the order of the features, the number of
workers, or interruptions. On the same device, with the same numbers of threads and --rows and the same library
versions, it is the same to the bit; otherwise it may differ in its last bits, which a descent amplifies (study
reproducibility in analyses/README.md). Independence of the other images in a batch was measured for networks of ReLU,
ReLU6, LeakyReLU and Hardswish; with SiLU, GELU or softmax, and in fully connected layers of a few units, it holds up
to rounding.
manifest.json records what was used; a run that is resumed or repaired with something else reports it.

What S does not say: it is measured on images made for the features of these layers. Clusters that "the nulls allow"
have more structure than one common axis of variation; this does not prove separate groups, and two groups that are
exact opposites may be missed. `featmap validate` tests what may be concluded from a map.
"""
    + PHOTOGRAPHS
)

MAXIMISE = """
Units, with layers named as `featmap layers` prints them and all indices counted from 0:

\b
  inception4a:17               a feature: one channel of the layer's output
  inception4a:17:2             row 2 of its grid
  inception4a:17:2:3           one neuron: row 2, column 3
  inception4a:17:2:3+18:2:3    a set of neurons of one layer
  inception4a:17:..20          the first 20 neurons of the grid, row by row
  inception4a:all              the whole layer
  class:7                      a class logit
  'inception4a:17 + 0.5 * inception4b:201'    a weighted sum

Files of the run folder: images/ holds the images, features.png a sheet of them, features.pdf the same on pages of A4,
images.csv their activations and statuses (explained in `featmap similarity --help`), and arrays.zarr the exact pixels.
--frames also stores the images on the way and the responses to them.

Sheets and pages show images at a higher contrast than they have: each from its 1st to its 99th percentile, raised
by a factor of at most 4. Files in images/ and arrays.zarr hold the pixels as they are.

--facets N makes N images of each unit. The first is its ordinary image. Each other one starts from noise of its own,
and is pushed away from the earlier ones in all its steps, so that the layer's other features respond to it in another
way. A facet that keeps less than 90 % of the unit's response is made again, with half and a quarter of the push, and
then from the better one of two ordinary images; the attempt with the highest response stays. With --start there are no
facets. facets.csv has a row for each:

\b
  kept      share of the unit's response that the facet keeps, above the null
            image's: of the higher one of the responses to the ordinary image
            and to a second one, which is made from other noise
  nearest   distance to the nearest other facet (0: the layer's features
            respond in the same proportions, 1: unrelated)
  different whether the facet is clearly different from the others

Facets are clearly different if their distance is larger than 0.1, and larger than that between the two ordinary images
of 95 % of the layer's units. Only facets that keep at least 90 % of the response are counted. The column facets of
images.csv is their number, with the ordinary image; it is empty for layers with fewer than 20 units in the run. The
distance is one for this network: to another network the images may look more alike.

An image shows what excites a unit most, not what it responds to in photographs: `featmap validate` measures how far
the two agree.
"""

PROBE = (
    """
The source is the folder of a similarity or maximise run, or a folder or zip of photographs. Responses are mean
activations over the layer's grid in the unchanged network, in float32. To photographs, the responses of the bundled
network are recorded unless --model names another.

Files: responses.parquet, up to 2^24 values responses.csv (rows are images, columns responses), arrays.zarr.
"""
    + PHOTOGRAPHS
)

INTERACT = """
Three ways to use it:

\b
  featmap interact inception4a:17 inception4b:201
      two units or more: one page with every statistic
  featmap interact --layers inception4a inception4b --features 0-15 0-15
      every pair of two layers' features: matrices, a ranking with its false
      discovery rate, and a graph
  featmap interact --layers inception4a inception4b --screen --top 50
      too many pairs to measure: predict them, measure the top ones

The statistics, with the values of every seed (formulas: featmap/stats/interaction.py):

\b
  response nonlinearity  the headline: the share of the joint response that no
                         non-negative combination of the solo responses
                         explains
  its floors             the same for a unit against itself: from a start
                         perturbed by 2 %, and from another seed; the larger
                         mean counts
  its ceiling            the same with the solo images of unrelated features
                         as the parts; mean of four draws
  mixture nonlinearity   the same of the mean of the solo images: no joint
                         descent, and another quantity
  retention              the share of its solo response that a unit keeps on
                         the joint image
  cross-talk             the share of its solo response that a unit reaches on
                         the other unit's image
  image nonlinearity     the share of the joint image's pixels that the solo
                         images do not explain; floors as high: no claim
  second difference      the response to half of both images minus the
                         responses to half of each, and the feature where it
                         is largest; also of each unit with itself
  joint gain             what the joint descent reaches beyond the best blend;
                         above 0 also in a linear network: two steps add up
  territory              the share of responding positions where only one unit
                         responds, and the correlation of the two maps
  gradient agreement     mean cosine of the units' gradients along the joint
                         descent
  kind                   additive, suppressive, synergistic, competing for
                         place, or undecided (rules: see below)

Responses are measured in units of each feature's own standard deviation over 64 images with a 1/f spectrum. Features
that hardly vary over these (by less than a twentieth of the median of their layer) are left out and counted. The
recipe interact takes linear steps only, so that a linear network scores zero; with Adam or clamped pixels even a
linear network looks nonlinear, and the report says so. A confidence interval takes three seeds, a claim five.

The kind is decided from the intervals over seeds, three at least. A pair is competing for place where a unit keeps less
than 0.8 of what it would keep without interaction (additive retention: that of a linear network of the same cross-talk
and gradient agreement, to the power with which the unit responds to parts of its own image), and the units divide the
image: at 70 % of the responding positions only one responds, and the maps correlate negatively. It is suppressive where
a unit keeps as little elsewhere, or where the response nonlinearity is above its floor and features respond to both by
less, in size, than the sum of their responses to each (an OR, an XOR, a gate that one of them shuts, and what reads
these with a negative weight): a second difference of 0.1 or more that is surely below 0, with a balance of 0.2 or more
of its size. It is synergistic above its floor where both units reach more than alone, or with such a second difference
above 0 (an AND). It is additive where none of this holds, both units surely keep 0.8 of that, the nonlinearity is
surely less than 0.1 above its floor, and the second difference is no more than 0.1 above the units' own. Each pair is
judged by itself: only the column q allows for the number of pairs, so that pairs may be suppressive, by their
retention, of which none is above its floor. All rules: featmap/interaction/kinds.py.

On a real network 15 to 68 % of a layer's features are silent on the noise. At every step a unit without a gradient,
alone or in a sum, gets one through its dead ReLUs; in a sum it is made as long as the other units' gradients. Units
that have gradients, and networks without such activations, are not touched. `--recipe interact-unrescued` leaves silent
units silent: pairs of them are undefined (dead or unconverged partner).

Screening: pairs are predicted from the solo runs (agreement and product of the responses, cross-talk, agreement of
gradients, overlap of weights) and from --photographs. The prediction is weak so far. Each screening judges it on
--checks random pairs (of 32 features of each layer or more), compares it with the reliability of the measurement
itself, and reports how much more nonlinear its top pairs are: read that before the ranking.
"""

NEIGHBOURS = """
Similarity is S, the correlation of response profiles (`featmap similarity --help` gives the formula). Below the most
similar features are the most opposed ones, with the lowest S. --stimuli photographs lists them in the map of
photographs, of a run that has one. After `featmap validate` the table also says which features are unreliable, marked
by "?".
"""

ATLAS = """
The atlas is one file, atlas.html, that opens with a double click: it needs neither Python nor a connection.

\b
  Map       any of the measures; hover over a pair for its two images and
            all its numbers, click to keep it
  Graph     the neighbour graph with the images as nodes, by community; a
            slider sets the least similarity
  Card      of a feature: its image, where on it the feature responds, the
            descent curve, the nearest and most opposed features, the
            strongest responses in probed layers, and the command line and
            Python lines that make it again
  Clusters  a mosaic of each
  Both maps of a run with photographs: all pairs by S over images and over
            photographs; hover, click, and a list of those that part most

/ searches, arrow keys walk through neighbours, ? lists all keys; a link such as atlas.html#inception4a:17 opens a
feature's card. A run with photographs has a switch (or the key p) between its two maps, which heatmap, graph, clusters
and neighbours follow; atlas.html#inception4a:17&map=photographs names the second. Photographs alone make one map.

A run of several layers gets an index, atlas.html, over a page in each layer's folder: keep them together. A run of
interact or maximise gets a page of its reports or images. `featmap similarity` writes the atlas at its end
(--no-atlas leaves it out).

Where the network cannot be loaded by its name (one that was passed in from Python), the card says so instead of
showing where the feature responds; --model names the network, --no-maps does without it.

--embed-photographs adds to each card the photographs that excite the feature most, cropped to the place that responds,
and those at percentiles, with their file names and, where they are in a folder, relative links to the files. Without it
nothing of the photographs is in the page. It reads the photographs again, where they were when the run was made.

Numbers are computed from the stored A, so they are those of the tables, to the three digits shown. S is stored in the
page, because its stimuli may be images that the page does not show. The same run gives the same bytes. 512 features
of 128 pixels take 11 MB and 0.7 s until the map is drawn on two cores, 2,048 of 224 pixels 73 MB and 2 s (python -m
analyses.benchmarks.atlas); with many features, images become WebP of lower quality.
"""

VALIDATE = (
    """
RUN/validation/validation.md is one page: what may be concluded from this map and what may not, layer by layer, and
every statistic with its interval, compared with the same network with random weights and with A permuted within
columns. A validation that is stopped or extended (more seeds, photographs) computes only what is new.

The statistics (formulas: featmap/stats/reliability.py, featmap/stats/agreement.py):

\b
  repeatability  correlation of S between seeds (bootstrap over features) and
                 over halves of the images; also of each feature; agreement of
                 clusters, also between seeds of Louvain on the same map
  photographs    correlation (Mantel, Spearman) of S with S over photographs;
                 corrected for attenuation only if their own split-half
                 reliability is at least 0.9
  multiple       each maximising image's response divided by that of the
                 feature's best photograph; panels/ shows the best and worst
  path           how similarly up to 17 layers on the way to this layer, some
                 of them inside blocks, respond to the image and to the
                 feature's best photographs: 0 as to other features'
                 photographs, 1 as to one more of its own
  weights        S compared with cosines of incoming and outgoing weights

A verdict must hold at the lower bound of its interval; a claim about learning must also exceed the network with
random weights, of which one draw is taken.

Unreliable features are marked by " ?" in figures, in the atlas and where commands print them. In tables of a validated
run, reliable belongs to the feature of the row, and nearest_1_reliable, neighbour_reliable and partner_reliable to the
one that is named; the five square tables stay pure numbers. Groups of fewer than k + 1 features (11 as --neighbours is
10 by default) may be merged by the neighbour graph: map with fewer neighbours to find them.

Measured in a checkout of featmap: analyses/validation.md holds the bundled network's own validation, several layers
from early to late, and why similarity over photographs differs (python -m analyses.trial --photographs FOLDER);
python -m analyses.planted_truth shows how well maps recover planted similarity (copies, blocks, mixtures, noise),
compared with DORA's distance on the same A (curves: analyses/planted_truth.png).
"""
    + PHOTOGRAPHS
)

JUDGE = """
A descent can exploit features of one network only; an independently trained network reveals this. Images are taken as
a picture file holds them (clamped to [0, 1]) and resized to the judge's input size.

The measures (formulas: featmap/stats/transfer.py, featmap/stats/image_quality.py):

\b
  top1, top5,    of class logits: how often the class that an image was made
  median rank    for is first, among the first five, and its rank (0 is first,
                 ties count against it) for a judge with as many classes, in
                 the same order
  percentile     of hidden features: each is matched, over half of the
                 photographs, to the judge's feature with the most similar
                 responses; the percentile of that partner's response to the
                 image among its responses to the other half
  baseline       the same for images of other features of the layer; gain is
                 what the percentile has above it
  among images   share of the other features' images that excite the partner
                 less; 0.5 by chance
  ceiling        percentile of the partner's response to the photograph that
                 the feature responds to most strongly
  partner held out
                 correlation with the partner over the other half: where it is
                 low, the judge has no such feature
  coverage       share of the feature's grid above 10 % of its maximum; of
                 photographs: on each feature's best one
  contrast, slope, colour distance
                 deviation of the pixels; slope of the power spectrum (about
                 -2 for photographs); distance of the channels' correlations
                 from those of photographs
  multiple of best photograph
                 response to the image over that to the best photograph
  agreement      correlation of S over the images with S over photographs;
                 linear: without the square roots that S takes of responses

Files of RUN/judge (tables as .parquet and .csv):

\b
  images         one row per image: contrast, slope, colours, coverage
  transfer       one row per image and judge: rank, or partner and percentile
  statistics     the table that is printed
  summary.json   the same, with the judges and what was not measured

A network of your own needs its normalisation, as with --model:

\b
  featmap judge RUN --by nets:a --by squeezenet1_1 --by-mean 0.5,0.5,0.5
      --by-mean - --by-std 0.5,0.5,0.5 --by-std -

A further call replaces the results, or writes to another --out.
"""

VERIFY = """
Every chunk, table, figure and page has its SHA-256 in the manifest, and the manifest has its own. Runs inside the run
are checked too. Repeating the run's own command computes only what is damaged; of a run that was killed, or whose disk
was full, it resumes from what was stored. Commands that read a run refuse one whose files are not those that were
written.
"""

LAYERS = """
Any of these names can be given as --layer, and with a channel's number as a unit: inception4a:17 is channel 17 of
inception4a. Branches are those of a layer that concatenates several, with their numbers of channels.

Directions in the space of a layer's channels (components of NMF or PCA, rows of a sparse autoencoder's encoder, concept
vectors) are layers of their own: with --directions inception4a/nmf=FILE, inception4a/nmf:7 is direction 7 of the set,
a weighted sum of inception4a's channels at every position of the grid. All commands take directions like channels, and
a run folder keeps them in directions/, so that commands that read the run need no file. The file holds a matrix of K
directions by C channels:

\b
  .npy           the matrix
  .npz           directions, and if wanted bias (K numbers that are added),
                 relu (true: negative values become 0), names (K texts) and
                 name (of the set)
  .safetensors   tensors directions and bias; relu, names (a JSON list) and
                 name are entries of the metadata

A direction that is exactly one channel gives that channel's images and responses, to the bit. Directions that have
names may be given by them: inception4a/nmf:eyes, --features eyes,mouths.

S is centred over the features of a layer, and so over the directions of a set: the S of a set of a few directions says
little, that of a single one is undefined, and between a channel and its exact copy in a set, which are centred over
different features, S is below 1, while co-activation does not depend on the others. For one S of channels and
directions put both into one set: numpy.concatenate([numpy.eye(C), vectors]); copies then have S = 1. In Python:
featmap.load().with_directions({"inception4a/nmf": array}).
`python -m analyses.directions --photographs FOLDER` makes NMF and PCA directions of a layer, in a checkout of featmap.
"""

RECIPES = """
\b
  fast                default on a CPU: a spectrum in decorrelated colours, a
                      small random transform before each step, 32 steps, at
                      most 160 pixels
  standard            default on a GPU: larger transforms, 96 steps, the
                      network's own size
  natural             the same with 192 steps
  pixels              pixels with a blur that gets weaker, 24 steps; called
                      fast up to version 0.2
  pixels-long         the same with 60 steps; called standard up to
                      version 0.2
  large               deprecated: pixels with the first steps at half the size
  article             gradient descent as the article prints it
  article-normalised  the same, with the gradient divided by its RMS
  article-lowres      the article's first form
  interact            linear steps, for measuring interaction; units that are
                      silent on the noise are woken
  interact-unrescued  the same without waking; called interact up to
                      version 0.2

fast, standard and natural maximise the response less what is typical of the layer: the mean and one standard deviation
of the responses of all its features. So an image shows what is the feature's own. Responses, statuses and co-activation
are those of the feature alone, as under every recipe. Their null image is noise with the spectrum of natural images.
How often other networks recognise the images of each recipe is in analyses/benchmarks/README.md.

A run folder of fast, standard or interact of version 0.2 is resumed by `--recipe pixels`, `--recipe pixels-long` or
`--recipe interact-unrescued` with its folder as `--out`.

Size, steps, metric, C, precision, rows, seed and start can be changed on the command line; changes are part of the
run's identity.

--precision bfloat16 computes the descent in bfloat16; responses are always those of the unchanged network in float32.
It is 1.3 (64 pixels) to 1.7 times as fast where the processor supports it, and slower where it does not. The images
differ, so float32 is the default everywhere: a map should not depend on the processor.

--rows is the number of images in a batch. A batch that does not fit into memory is refused, with the number that
does. A GPU is busy from about 128 rows on. The number of rows belongs to the run's identity, because libraries may
round differently. A batch of fewer images takes fewer rows where one step shows that its images keep their bits, mostly
two for one image; the manifest of a run lists them as batch_rows (workers of --engine ray choose theirs unlisted).

On a GPU the loop never waits for the device (except for --frames), and a batch is written while the next one is
computed (workers of --engine ray write before they go on). TF32 and cudnn.benchmark stay off: the first rounds to ten
bits, the second chooses kernels by their timing, so that a repeated run may differ in its bits. None of this has been
timed on a GPU yet; python -m analyses.benchmarks.steps --device cuda --rows 128 does so in a checkout, including TF32,
torch.compile and CUDA graphs, which featmap does not use.
"""
