package main

import (
	"cmp"
	"context"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/cni"
	"github.com/ebpnet/ebpnet/internal/netavark"
)

// Where the host's state lies if nobody says otherwise, and the environment
// variables that do.
const (
	defaultState  = "/var/lib/ebpnet"
	defaultPin    = "/sys/fs/bpf/ebpnet"
	stateVariable = "EBPNET_STATE"
	pinVariable   = "EBPNET_PIN"
)

// answerAsPlugin answers a container runtime, and does not come back, if the
// binary was called by the name of the CNI plugin: that has no arguments.
func answerAsPlugin() {
	if filepath.Base(os.Args[0]) != cni.Name {
		return
	}
	p := agent.Place{
		State: cmp.Or(os.Getenv(stateVariable), defaultState),
		Pins:  cmp.Or(os.Getenv(pinVariable), defaultPin),

		Version: version,
	}
	os.Exit(cni.Main(context.Background(), p, logger()))
}

// netavarkCommands are those that Podman's netavark calls: nobody else does.
func netavarkCommands() []*cli.Command {
	var commands []*cli.Command
	for _, verb := range netavark.Verbs() {
		commands = append(commands, &cli.Command{
			Name:   verb,
			Usage:  "answer netavark, whose plugin this binary can be",
			Hidden: true,
			Action: func(c *cli.Context) error {
				p := netavark.Plugin{Place: place(c), Version: version, Log: logger()}
				if p.Run(c.Context, verb, c.Args().Slice(), os.Stdin, c.App.Writer) != nil {
					os.Exit(exitFailure) // what went wrong is told already, on standard output
				}
				return nil
			},
		})
	}
	return commands
}
