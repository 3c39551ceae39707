package main

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"
)

func TestWarnings(t *testing.T) {
	t.Parallel()
	for want, tell := range map[string]func(*slog.Logger){
		"ebpnet: warning: all is well\n":                      func(l *slog.Logger) { l.Warn("all is well") },
		"ebpnet: warning: port is taken port=80 by=\"a b\"\n": func(l *slog.Logger) { l.Warn("port is taken", "port", 80, "by", "a b") },
		"ebpnet: error: no luck error=\"one\\ntwo\"\n":        func(l *slog.Logger) { l.Error("no luck", "error", errors.New("one\ntwo")) },
		"ebpnet: note: no XDP uplink=eth0\n":                  func(l *slog.Logger) { l.With("uplink", "eth0").Info("no XDP") },
		"ebpnet: note: no XDP dev.time=eth0\n":                func(l *slog.Logger) { l.WithGroup("dev").Info("no XDP", "time", "eth0") },
		"":                                                    func(l *slog.Logger) { l.Debug("details") },
	} {
		out := new(bytes.Buffer)
		if tell(warnings(out)); out.String() != want {
			t.Errorf("got %q, want %q", out, want)
		}
	}
}
