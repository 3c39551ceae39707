package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// circles counts the filled circles of a drawing, which it fails to parse if
// it is no XML; texts are what it says.
func circles(t *testing.T, svg []byte) (count int, texts []string) {
	t.Helper()
	decoder := xml.NewDecoder(bytes.NewReader(svg))
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return count, texts
		}
		if err != nil {
			t.Fatalf("not well-formed: %v\n%s", err, svg)
		}
		switch token := token.(type) {
		case xml.StartElement:
			shape, style := "", ""
			for _, a := range token.Attr {
				switch a.Name.Local {
				case "d":
					shape = a.Value
				case "style":
					style = a.Value
				}
			}
			if strings.Contains(shape, "A") && !strings.Contains(style, "fill:none") {
				count++
			}
		case xml.CharData:
			if said := strings.TrimSpace(string(token)); said != "" {
				texts = append(texts, said)
			}
		}
	}
}

func TestPlotHasEachSampleOnce(t *testing.T) {
	t.Parallel()
	for name, samples := range map[string]map[string][]float64{
		"linear":      {wire: {10, 11, 12}, ebpnet: {9, 9, 9}, bridge: {7, 8, 6}},
		"logarithmic": {wire: {10_000, 11_000, 12_000}, ebpnet: {9000, 9000, 9000}, bridge: {7, 8, 6}},
		"alone":       {ebpnet: {0, 0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rep := filled(t, samples)
			draw := func() []byte {
				var b bytes.Buffer
				if err := drawSamples(&b, familyOf(named(t, wire)), rep.Results); err != nil {
					t.Fatal(err)
				}
				return b.Bytes()
			}
			svg := draw()
			count, texts := circles(t, svg)
			if want := 3 * len(samples); count != want {
				t.Errorf("%d points, want %d", count, want)
			}
			for topology := range samples {
				if !slices.Contains(texts, topology) {
					t.Errorf("no row is called %s: %q", topology, texts)
				}
			}
			if _, given := samples[wire]; strings.Contains(strings.Join(texts, "\n"), "dashed: median of the wire") != given {
				t.Errorf("wire measured: %v, and its line is explained among %q", given, texts)
			}
			if !bytes.Equal(svg, draw()) {
				t.Error("drawn again it differs")
			}
		})
	}
}

// A plot for each measure of each family, and one of latencies only where
// there are some.
func TestPlotFiles(t *testing.T) {
	t.Parallel()
	opt := options{rounds: 1, duration: time.Second, topologies: []topology{named(t, wire), named(t, "port-wire")}, measures: measures()}
	rep := newReport(opt)
	want := map[string]bool{}
	for _, now := range opt.turns(0) {
		s := sample{value: 3}
		want[now.topology.family+"-"+now.measure.name+".svg"] = true
		if now.measure.name == pacedTCP {
			s.latencies = []time.Duration{0, time.Microsecond, 3 * time.Millisecond}
			want[now.topology.family+"-"+now.measure.name+"-latency.svg"] = true
		}
		rep.add(now.measure, now.topology, s)
	}
	rep.finish()
	directory := filepath.Join(t.TempDir(), "new", "plots")
	if err := rep.writeSVG(directory); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(directory)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, f := range files {
		got[f.Name()] = true
		svg, err := os.ReadFile(filepath.Join(directory, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		circles(t, svg)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestDistribution(t *testing.T) {
	t.Parallel()
	var all []time.Duration
	for i := range 10 * cdfSteps {
		all = append(all, time.Duration(10*cdfSteps-i)*time.Microsecond)
	}
	for _, n := range []int{1, 2, len(all)} {
		curve := distribution(all[len(all)-n:])
		last := curve[len(curve)-1]
		if len(curve) != min(n, cdfSteps) || curve[0].X != 1 || last.X != float64(n) || last.Y != 1 {
			t.Errorf("of %d: %d steps from %v to %v", n, len(curve), curve[0], last)
		}
	}
}
