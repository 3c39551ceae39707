package main

import (
	"encoding/json"
	"fmt"
	"testing"
)

func TestGrowthIsMeasured(t *testing.T) {
	needRoot(t)
	t.Parallel()
	for _, name := range []string{"growth-endpoints-10", "growth-links-10", "growth-ports-10", "growth-flows-1000"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opt := once(named(t, name), name+"-all")
			rep, err := measureAll(t.Context(), opt, func(string) {})
			if err != nil {
				t.Fatal(err)
			}
			if got, want := len(rep.Results), len(familyOf(opt.topologies[0]).measures); got != want {
				t.Errorf("%d measures, want %d", got, want)
			}
			for _, r := range rep.Results {
				if r.Median <= 0 {
					t.Errorf("%s: median %v %s", r.Measure, r.Median, r.Unit)
				}
			}
			nothingLeft(t, name+"-all")
		})
	}
}

// A host holds the crowd that is asked for besides what is measured, and is the
// same after one more has come and gone.
func TestCrowdIsThere(t *testing.T) {
	needRoot(t)
	t.Parallel()
	type counts struct {
		Endpoints, Links, Ports int
	}
	for i, c := range []struct {
		family string
		crowd  crowd
		want   counts
		flows  int // at least
	}{
		{moreEndpoints, crowd{local: 3}, counts{Endpoints: 5}, 0},
		{moreEndpoints, crowd{remote: 3}, counts{Endpoints: 5}, 0},
		{moreLinks, crowd{remote: linkEnds, links: linkClients + 1}, counts{Endpoints: 2 + linkEnds, Links: linkClients + 2}, 0},
		{morePorts, crowd{ports: 3}, counts{Endpoints: 2, Ports: 5}, 0},
		{moreFlows, crowd{flows: 2 * flowServers}, counts{Endpoints: 2}, 2 * flowServers},
	} {
		t.Run(c.family, func(t *testing.T) {
			t.Parallel()
			l := newLab(t.Context(), fmt.Sprintf("crowd-%d", i), 0)
			t.Cleanup(func() {
				if err := l.close(); err != nil {
					t.Error(err)
				}
			})
			p := buildGrown(l, c.family, c.crowd)
			if l.err != nil {
				t.Fatal(l.err)
			}
			if _, err := takeAdding(t.Context(), p, options{}); err != nil {
				t.Fatal(err)
			}
			o, err := p.grown.run("status", "-o", "json")
			if err != nil {
				t.Fatal(err)
			}
			var got struct {
				counts
				Tables []struct {
					Name    string
					Entries int
				}
			}
			if err := json.Unmarshal(o.stdout, &got); err != nil {
				t.Fatal(err)
			}
			if got.counts != c.want {
				t.Errorf("%+v, want %+v", got.counts, c.want)
			}
			for _, table := range got.Tables {
				if table.Name == "flows" && table.Entries < c.flows {
					t.Errorf("%d flows, want %d", table.Entries, c.flows)
				}
			}
		})
	}
}
