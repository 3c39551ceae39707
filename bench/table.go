package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// table writes the report for people, a table for each family measured.
func (rep *report) table(w io.Writer) error {
	var b strings.Builder
	netfilter := "with"
	if !rep.BridgeNetfilter {
		netfilter = "without"
	}
	fmt.Fprintf(&b, "Linux %s, CPU %d, %d rounds of %gs, bridge %s br_netfilter, %s, %s\n",
		rep.Kernel, rep.CPU, rep.Rounds, rep.Seconds, netfilter, cmp.Or(rep.Iptables, "no iptables"),
		rep.Started.Format(time.RFC3339))
	for _, f := range families() {
		if rows := rep.rows(f); len(rows) > 1 {
			fmt.Fprintf(&b, "\n%s: %s\n\n", f.name, f.about)
			align(&b, rows)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// detail is a column of those tables in which it tells something new.
type detail struct {
	name string
	of   func(r result) *spread
}

func details() []detail {
	return []detail{
		{"CPU µs", func(r result) *spread { return r.CPU }},
		{"P50 µs", func(r result) *spread { return r.P50 }},
		{"P99 µs", func(r result) *spread { return r.P99 }},
	}
}

// addsTo tells whether a row of the table has the detail, and not as its figure.
func (d detail) addsTo(rows []result) bool {
	return slices.ContainsFunc(rows, func(r result) bool {
		s := d.of(r)
		return s != nil && s.Median != r.Median
	})
}

// rows are a family's table, its first the names of the columns.
func (rep *report) rows(f family) [][]string {
	results := slices.DeleteFunc(slices.Clone(rep.Results), func(r result) bool { return r.Family != f.name })
	besides := slices.DeleteFunc(details(), func(d detail) bool { return !d.addsTo(results) })

	head := []string{"MEASURE", "TOPOLOGY", "MEDIAN", "MIN", "MAX", "UNIT"}
	for _, kind := range f.bases {
		head = append(head, "TO "+strings.ToUpper(kind))
	}
	for _, d := range besides {
		head = append(head, d.name)
	}
	rows := [][]string{append(head, "LOST")}
	for i := range results {
		r := &results[i]
		row := []string{r.Measure, r.Topology, figure(r.Median), figure(r.Min), figure(r.Max), r.Unit}
		for _, kind := range f.bases {
			row = append(row, ratioText(ratio(r, rep.base(r, kind))))
		}
		for _, d := range besides {
			row = append(row, d.of(*r).text())
		}
		rows = append(rows, append(row, fmt.Sprintf("%.1f%%", 100*r.Lost)))
	}
	return rows
}

// text is the median, or a dash for nil.
func (s *spread) text() string {
	if s == nil {
		return "-"
	}
	return figure(s.Median)
}

// align writes rows as columns, text to the left and figures to the right.
func align(b *strings.Builder, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range rows {
		for i, cell := range row {
			width := widths[i]
			if name := i < 2 || i == 5; name {
				width = -width // to the left
			}
			row[i] = fmt.Sprintf("%*s", width, cell)
		}
		fmt.Fprintln(b, strings.Join(row, "  "))
	}
}

// figure writes a value with three digits or more.
func figure(v float64) string {
	const large = 1000
	if v >= large {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

func ratioText(r *float64) string {
	if r == nil {
		return "-"
	}
	return fmt.Sprintf("%.2f", *r)
}
