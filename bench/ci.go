package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// What --ci measures with, unless told otherwise: as short as the ratios of
// the floors stand still.
const (
	ciRounds   = 5
	ciDuration = 400 * time.Millisecond
)

// wanted tells whether a measure is to be taken over a topology.
func (opt options) wanted(m measure, t topology) bool {
	return !opt.ci || slices.ContainsFunc(opt.floors, func(f floor) bool { return f.needs(m, t) })
}

// hold makes the options those of what the floors need, and no more.
func (opt *options) hold(all []floor) {
	opt.floors = all
	opt.topologies = slices.DeleteFunc(topologies(), func(t topology) bool {
		return !slices.ContainsFunc(measures(), func(m measure) bool { return opt.wanted(m, t) })
	})
	opt.measures = measures()
}

// judge holds a report against its floors. Families with a ratio below its
// floor are measured once more, by again, as the machine may have been busy
// with something else; what is then still below is the error, a line each. It
// says on w that it measured twice.
func judge(rep report, opt options, w io.Writer, again func(options) (report, error)) error {
	missed, failed := rep.missed(opt.floors)
	if len(failed) == 0 {
		fmt.Fprintf(w, "bench: all %d floors hold\n", len(opt.floors))
		return nil
	}
	for _, err := range failed {
		if !errors.Is(err, errBelow) {
			return errors.Join(failed...)
		}
		fmt.Fprintf(w, "bench: %v\n", err)
	}
	var families []string
	for _, f := range missed {
		if !slices.Contains(families, f.family) {
			families = append(families, f.family)
		}
	}
	fmt.Fprintf(w, "bench: measuring once more: %s\n", strings.Join(families, ", "))

	second := opt
	second.hold(slices.DeleteFunc(slices.Clone(opt.floors), func(f floor) bool {
		return !slices.Contains(families, f.family)
	}))
	second.json, second.svg = secondFile(opt.json), secondFile(opt.svg)
	rep, err := again(second)
	if err != nil {
		return err
	}
	if _, failed = rep.missed(second.floors); len(failed) > 0 {
		return errors.Join(failed...)
	}
	fmt.Fprintf(w, "bench: all %d floors hold, %d of them only when measured a second time\n", len(opt.floors), len(missed))
	return nil
}

// secondFile names the file or directory of the second time beside that of
// the first; empty stays empty.
func secondFile(first string) string {
	if first == "" {
		return ""
	}
	end := filepath.Ext(first)
	return strings.TrimSuffix(first, end) + "-again" + end
}

// measureAndShow measures, writes the table to w and the files asked for.
func measureAndShow(ctx context.Context, opt options, w io.Writer, progress func(string)) (report, error) {
	rep, err := measureAll(ctx, opt, progress)
	if err != nil {
		return report{}, err
	}
	if err := rep.table(w); err != nil {
		return report{}, err
	}
	if opt.json != "" {
		if err := rep.writeJSON(opt.json); err != nil {
			return report{}, err
		}
	}
	if opt.svg != "" {
		return rep, rep.writeSVG(opt.svg)
	}
	return rep, nil
}
