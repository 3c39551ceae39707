package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/urfave/cli/v2"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/store"
)

// table is what is printed for people: a line of headings, then rows.
type table struct {
	headings []string
	rows     [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t table) write(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{t.headings}, t.rows...) {
		for i, cell := range row {
			if row[i] = strings.Map(shown, cell); cell == "" {
				row[i] = "-"
			}
		}
		if _, err := fmt.Fprintln(tw, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// shown replaces what would act on a terminal: engines' names may hold anything.
func shown(c rune) rune {
	if unicode.IsPrint(c) {
		return c
	}
	return unicode.ReplacementChar
}

// print prints data as JSON, or as the tables made of it, parted by empty
// lines.
func print(c *cli.Context, data any, tables func() []table) error {
	if c.String("output") == "json" {
		encoder := json.NewEncoder(c.App.Writer)
		encoder.SetIndent("", "  ")
		return encoder.Encode(data)
	}
	first := true
	for _, t := range tables() {
		if !first {
			fmt.Fprintln(c.App.Writer)
		}
		first = false
		if err := t.write(c.App.Writer); err != nil {
			return err
		}
	}
	return nil
}

func one(t table) func() []table { return func() []table { return []table{t} } }

// join lists things that have a String method.
func join[T fmt.Stringer](things []T) string {
	texts := make([]string, len(things))
	for i, thing := range things {
		texts[i] = thing.String()
	}
	return strings.Join(texts, ",")
}

// place says where the host's state lies.
func place(c *cli.Context) agent.Place {
	return agent.Place{State: c.String("state"), Pins: c.String("pin"), Version: version}
}

// withAgent runs f on the opened host.
func withAgent(c *cli.Context, f func(*agent.Agent) error) error {
	return agent.With(c.Context, place(c), warnings(os.Stderr), f)
}

// read runs f on the store as it stands.
func read(c *cli.Context, f func(*store.Tx) error) error { return readWithin(c.Context, c, f) }

// readWithin is read that waits for the store as long as ctx lasts.
func readWithin(ctx context.Context, c *cli.Context, f func(*store.Tx) error) error {
	s, err := store.OpenReadOnly(ctx, c.String("state"))
	if err != nil {
		return err
	}
	if err := s.View(f); err != nil {
		_ = s.Close()
		return err
	}
	return s.Close()
}

// endpointCalled gives the name of the endpoint that the user means (see
// store.Tx.EndpointCalled).
func endpointCalled(c *cli.Context, s string) (string, error) {
	return called(c, s, (*store.Tx).EndpointCalled)
}

// networkCalled gives the name of the network that the user means.
func networkCalled(c *cli.Context, s string) (string, error) {
	return called(c, s, (*store.Tx).NetworkCalled)
}

func called(c *cli.Context, s string, find func(*store.Tx, string) (string, error)) (name string, err error) {
	err = read(c, func(tx *store.Tx) (err error) {
		name, err = find(tx, s)
		return err
	})
	return name, err
}

// argumentCalled is arguments for a single one that names a noun.
func argumentCalled(c *cli.Context, placeholder string, find func(*cli.Context, string) (string, error)) (string, error) {
	args, err := arguments(c, placeholder)
	if err != nil {
		return "", err
	}
	return find(c, args[0])
}

// emptyIfNil makes an empty list print as [] and not as null.
func emptyIfNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
