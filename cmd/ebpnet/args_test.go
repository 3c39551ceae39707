package main

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestInterspersed(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"endpoint add web --network n -o json":       "-o json endpoint add --network n -- web",
		"endpoint add --network=n web":               "endpoint add --network=n -- web",
		"endpoint add web --ifname -x":               "endpoint add --ifname -x -- web",
		"endpoint rm -- --help":                      "endpoint rm -- --help",
		"endpoint rm h":                              "endpoint rm -- h",
		"endpoint add help --network help":           "endpoint add --network help -- help",
		"endpoint set web --max-flows --max-ports 4": "endpoint set --max-flows",
		"endpoint set web --max-flows -o json":       "endpoint set --max-flows",
		"endpoint set web --max-flows --":            "endpoint set --max-flows",
		"endpoint set web --max-flows":               "endpoint set --max-flows",
		"endpoint ls --state --pin /x":               "--state",

		// Help.
		"--help":                                 "--help",
		"help":                                   "--help",
		"h":                                      "--help",
		"-o json --help":                         "--help",
		"endpoint --help":                        "endpoint --help",
		"help endpoint":                          "endpoint --help",
		"help endpoint set web":                  "endpoint set --help",
		"endpoint help set":                      "endpoint set --help",
		"endpoint set web --help":                "endpoint set --help",
		"endpoint set web -h --max-flows 4":      "endpoint set --help",
		"endpoint set web --max-flows -h":        "endpoint set --help",
		"endpoint set --max-flow 4 web -h":       "endpoint set --help",
		"--help endpoint set web":                "endpoint set --help",
		"endpoint create web --help":             "endpoint create --help",
		"endpoint nosuch --help":                 "endpoint -- nosuch",
		"help nosuch":                            "-- nosuch",
		"help endpoint nosuch set":               "endpoint -- nosuch",
		"endpoint se --generate-bash-completion": "endpoint se --generate-bash-completion",
	} {
		got := interspersed(newApp(), append([]string{"ebpnet"}, strings.Fields(given)...))
		if got = got[1:]; !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%q becomes %q, want %q", given, got, want)
		}
	}
}

// TestHelp expects each command to tell of itself, wherever help is asked for.
func TestHelp(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"--help":                   "ebpnet - ",
		"help":                     "ebpnet - ",
		"help endpoint":            "ebpnet endpoint - ",
		"help endpoint set":        "ebpnet endpoint set - ",
		"endpoint set web --help":  "ebpnet endpoint set - ",
		"port set web 80:80 -h":    "ebpnet port set - ",
		"port inspect web 80 -h":   "ebpnet port inspect - ",
		"port ls web --help":       "ebpnet port ls - ",
		"tunnel set hostB --help":  "ebpnet tunnel set - ",
		"endpoint --help add":      "ebpnet endpoint add - ",
		"load --flows 2000 --help": "ebpnet load - ",
	} {
		out, err := run(t, given)
		if err != nil || !strings.Contains(out, "NAME:\n   "+want) {
			t.Errorf("%q prints %q, error %v; want the help of %q", given, out, err, want)
		}
		if strings.Contains(out, "Shows a list") || strings.Contains(out, "default: default") {
			t.Errorf("%q prints\n%s", given, out)
		}
	}
	for given, want := range map[string]string{
		"nosuch --help":                              `unknown command "nosuch": want one of check, load, `,
		"help nosuch":                                `unknown command "nosuch": want one of check, load, `,
		"endpoint nosuch --help":                     `unknown command "nosuch": want one of add, set, rm, ls, inspect`,
		"help endpoint nosuch":                       `unknown command "nosuch": want one of add, set, rm, ls, inspect`,
		"endpoint set web --max-flow 4":              "unknown option --max-flow; see 'ebpnet endpoint set --help'",
		"endpoint ls -q":                             "unknown option -q; see 'ebpnet endpoint ls --help'",
		"endpoint set web --max-flows":               "--max-flows needs a value; see 'ebpnet endpoint set --help'",
		"endpoint set web --max-flows --max-ports 4": "--max-flows needs a value; see 'ebpnet endpoint set --help'",
		"endpoint ls -o":                             "-o needs a value; see 'ebpnet --help'",
	} {
		if out, err := run(t, given); !errors.Is(err, errUsage) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q prints %q, error %v; want %q", given, out, err, want)
		}
	}
}

// run runs a command that changes nothing.
func run(t *testing.T, line string) (string, error) {
	t.Helper()
	app, out := newApp(), new(bytes.Buffer)
	app.Writer = out
	err := app.Run(interspersed(app, append([]string{"ebpnet"}, strings.Fields(line)...)))
	return out.String(), err
}
