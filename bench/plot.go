package main

import (
	"fmt"
	"image/color"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Sizes of a plot.
const (
	plotWidth  = 18 * vg.Centimeter
	rowHeight  = 0.9 * vg.Centimeter // of a topology
	frame      = 4 * vg.Centimeter   // height of title and axis
	margin     = 0.4 * vg.Centimeter
	cdfHeight  = 11 * vg.Centimeter
	pointSize  = vg.Length(2.2)
	titleSize  = vg.Length(11)
	labelSize  = vg.Length(9)
	medianHalf = 0.32 // of a row's height of 1
	spreadHalf = 0.2  // how far rounds stand from the middle of the row
)

// logFrom is the ratio of a plot's largest to its smallest sample from which
// its axis is logarithmic: an axis from 0 would hide the small ones.
const logFrom = 20

// axisBeyond is how far beyond the largest sample an axis goes, by ratio.
const axisBeyond = 1.03

// Colours: of the samples, of the median, and of the wire.
var (
	sampleColor = color.NRGBA{R: 0x1f, G: 0x77, B: 0xb4, A: 0xff}
	medianColor = color.NRGBA{A: 0xff}
	wireColor   = color.NRGBA{R: 0x77, G: 0x77, B: 0x77, A: 0xff}
)

// writeSVG writes a plot of each measure of each family into a directory, and
// one more where latencies are known.
func (rep *report) writeSVG(directory string) error {
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return err
	}
	for _, f := range families() {
		for _, name := range f.measures {
			rows := slices.DeleteFunc(slices.Clone(rep.Results), func(r result) bool {
				return r.Family != f.name || r.Measure != name
			})
			if len(rows) == 0 {
				continue
			}
			base := filepath.Join(directory, f.name+"-"+name)
			if err := writePlot(base+".svg", func(w io.Writer) error { return drawSamples(w, f, rows) }); err != nil {
				return err
			}
			if !slices.ContainsFunc(rows, func(r result) bool { return len(r.latencies) > 0 }) {
				continue
			}
			if err := writePlot(base+"-latency.svg", func(w io.Writer) error { return drawLatencies(w, f, rows) }); err != nil {
				return err
			}
		}
	}
	return nil
}

func writePlot(file string, draw func(io.Writer) error) error {
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := draw(out); err != nil {
		_ = out.Close() // what failed before says more
		return fmt.Errorf("%s: %w", file, err)
	}
	return out.Close()
}

// newPlot has a title of two lines and sans serif letters.
func newPlot(f family, title string) *plot.Plot {
	p := plot.New()
	p.Title.Text = f.name + ": " + title + "\n" + f.about
	p.Title.Padding = vg.Points(8)
	for style, size := range map[*text.Style]vg.Length{
		&p.Title.TextStyle: titleSize, &p.X.Label.TextStyle: labelSize, &p.Y.Label.TextStyle: labelSize,
		&p.X.Tick.Label: labelSize, &p.Y.Tick.Label: labelSize, &p.Legend.TextStyle: labelSize,
	} {
		style.Font.Variant, style.Font.Size = "Sans", size
	}
	return p
}

// drawSamples draws a row for each topology, with a point for each round, the
// first on top, and a line at their median; and a dashed line through all rows
// at the median of the wire.
func drawSamples(w io.Writer, f family, rows []result) error {
	p := newPlot(f, rows[0].Measure)
	better := "more is better"
	if rows[0].of.lessIsBetter {
		better = "less is better"
	}
	legend := "a point for each round, a line at their median"

	least, most := math.Inf(1), math.Inf(-1)
	for _, r := range rows {
		least, most = min(least, r.Min), max(most, r.Max)
	}
	bottom, top := -0.5, float64(len(rows))-0.5
	for i, r := range rows {
		middle := float64(len(rows) - 1 - i) // the first on top
		if err := addRow(p, r, middle); err != nil {
			return err
		}
		if r.over.kind == wire {
			line, err := plotter.NewLine(plotter.XYs{{X: r.Median, Y: bottom}, {X: r.Median, Y: top}})
			if err != nil {
				return err
			}
			line.Color, line.Dashes = wireColor, []vg.Length{vg.Points(4), vg.Points(3)}
			p.Add(line)
			legend += "; dashed: median of the wire"
		}
	}
	p.X.Label.Text = fmt.Sprintf("%s: %s, %s\n%s", rows[0].of.about, rows[0].Unit, better, legend)

	names := make([]string, len(rows))
	for i, r := range rows {
		names[len(rows)-1-i] = r.Topology
	}
	p.NominalY(names...)
	p.Y.Min, p.Y.Max = bottom, top
	if least > 0 && most/least > logFrom {
		p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
		p.X.Min, p.X.Max = decade(least, math.Floor), decade(most, math.Ceil)
	} else {
		p.X.Min, p.X.Max = min(0, least), most*axisBeyond
	}
	return render(p, frame+rowHeight*vg.Length(len(rows)), w)
}

// decade rounds to a power of ten.
func decade(v float64, round func(float64) float64) float64 {
	return math.Pow(10, round(math.Log10(v)))
}

// addRow adds the samples of a topology and their median.
func addRow(p *plot.Plot, r result, middle float64) error {
	points := make(plotter.XYs, len(r.Samples))
	for i, v := range r.Samples {
		points[i] = plotter.XY{X: v, Y: middle}
		if last := len(r.Samples) - 1; last > 0 {
			points[i].Y += spreadHalf * (1 - 2*float64(i)/float64(last))
		}
	}
	samples, err := plotter.NewScatter(points)
	if err != nil {
		return err
	}
	samples.GlyphStyle = draw.GlyphStyle{Color: sampleColor, Radius: pointSize, Shape: draw.CircleGlyph{}}
	tick, err := plotter.NewLine(plotter.XYs{{X: r.Median, Y: middle - medianHalf}, {X: r.Median, Y: middle + medianHalf}})
	if err != nil {
		return err
	}
	tick.Color, tick.Width = medianColor, vg.Points(1.5)
	p.Add(samples, tick)
	return nil
}

// cdfSteps is how many points of a distribution are drawn: more would not show.
const cdfSteps = 400

// drawLatencies draws for each topology which share of the requests of all
// rounds was answered within which time.
func drawLatencies(w io.Writer, f family, rows []result) error {
	p := newPlot(f, rows[0].Measure+", latency")
	p.X.Label.Text = fmt.Sprintf("µs, logarithmic; requests of all rounds, %d a second due", pacedRate)
	p.Y.Label.Text = "share answered within"
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	p.Add(plotter.NewGrid())
	p.Legend.Padding = vg.Points(2)
	least, most := math.Inf(1), math.Inf(-1)
	for i, r := range rows {
		if len(r.latencies) == 0 {
			continue
		}
		curve := distribution(r.latencies)
		least, most = min(least, curve[0].X), max(most, curve[len(curve)-1].X)
		line, err := plotter.NewLine(curve)
		if err != nil {
			return err
		}
		line.Color, line.Dashes, line.Width = plotutil.DarkColors[i%len(plotutil.DarkColors)], plotutil.Dashes(i/len(plotutil.DarkColors)), vg.Points(1.2)
		if r.over.kind == wire {
			line.Color, line.Width = medianColor, vg.Points(1.8)
		}
		p.Add(line)
		p.Legend.Add(r.Topology, line)
	}
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = decade(least, math.Floor), decade(most, math.Ceil), 0, 1
	return render(p, cdfHeight, w)
}

// distribution gives some points of the cumulative distribution, the extremes
// among them: µs, and the share that does not exceed it.
func distribution(latencies []time.Duration) plotter.XYs {
	sorted := slices.Sorted(slices.Values(latencies))
	steps := min(cdfSteps, len(sorted))
	curve := make(plotter.XYs, steps)
	for i := range curve {
		rank := len(sorted)
		if steps > 1 {
			rank = 1 + i*(len(sorted)-1)/(steps-1)
		}
		// A clock may not tell so short a time from none, and there is no
		// logarithm of nothing.
		shown := max(sorted[rank-1], time.Nanosecond)
		curve[i] = plotter.XY{X: microseconds(shown), Y: float64(rank) / float64(len(sorted))}
	}
	return curve
}

func render(p *plot.Plot, height vg.Length, w io.Writer) error {
	canvas := vgsvg.New(plotWidth, height)
	p.Draw(draw.Crop(draw.New(canvas), margin, -margin, margin, -margin))
	_, err := canvas.WriteTo(w)
	return err
}
