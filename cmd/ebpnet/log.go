package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
)

// logger is for what runs on, and for what an engine calls.
func logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, nil))
}

// warnings is for commands: it prints each record as one line, like an error.
func warnings(to io.Writer) *slog.Logger {
	attributes := new(bytes.Buffer)
	return slog.New(&lineHandler{
		mutex: new(sync.Mutex), to: to, attributes: attributes,
		Handler: slog.NewTextHandler(attributes, &slog.HandlerOptions{ReplaceAttr: withoutHead}),
	})
}

// withoutHead leaves out the attributes that lineHandler prints itself.
func withoutHead(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
		return slog.Attr{}
	}
	return a
}

// lineHandler prints "ebpnet: warning: MESSAGE KEY=VALUE...".
type lineHandler struct {
	slog.Handler // writes the attributes
	attributes   *bytes.Buffer
	to           io.Writer
	mutex        *sync.Mutex // of attributes and to
}

func (h *lineHandler) Handle(ctx context.Context, r slog.Record) error {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.attributes.Reset()
	if err := h.Handler.Handle(ctx, r); err != nil {
		return err
	}
	kind := "note"
	switch {
	case r.Level >= slog.LevelError:
		kind = "error"
	case r.Level >= slog.LevelWarn:
		kind = "warning"
	}
	line := strings.TrimSpace(r.Message + " " + h.attributes.String())
	_, err := fmt.Fprintf(h.to, "ebpnet: %s: %s\n", kind, line)
	return err
}

// WithAttrs is as slog.Handler says.
func (h *lineHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *h
	with.Handler = h.Handler.WithAttrs(attrs)
	return &with
}

// WithGroup is as slog.Handler says.
func (h *lineHandler) WithGroup(name string) slog.Handler {
	with := *h
	with.Handler = h.Handler.WithGroup(name)
	return &with
}
