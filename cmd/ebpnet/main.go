// Command ebpnet is the network of a container host, as eBPF. This package is
// the command line: arguments in, tables or JSON out, one file a group of
// commands; what they do is in package agent.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/loader"
)

// version is set by the linker.
var version = "unknown"

// Exit codes.
const (
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	answerAsPlugin()
	app := newApp()
	if err := app.Run(interspersed(app, os.Args)); err != nil {
		fmt.Fprintln(os.Stderr, "ebpnet: "+oneLine(err))
		os.Exit(exitCode(err))
	}
}

func exitCode(err error) int {
	if errors.Is(err, errUsage) || errors.Is(err, spec.ErrInvalid) {
		return exitUsage
	}
	return exitFailure
}

// oneLine gives an error as one line; only the verifier, whose words are for
// developers, may say more.
func oneLine(err error) string {
	return agent.OneLine(err) + loader.VerifierLog(err)
}

var errUsage = errors.New("usage")

// usagef is an error in how the command was called.
func usagef(format string, args ...any) error {
	return usageError(fmt.Sprintf(format, args...))
}

type usageError string

func (e usageError) Error() string        { return string(e) }
func (e usageError) Is(target error) bool { return target == errUsage }

func newApp() *cli.App {
	app := &cli.App{
		Name:      "ebpnet",
		Usage:     "the network of a container host, as eBPF",
		UsageText: "ebpnet [global options] command [arguments and options, in any order]",
		Description: "Bridging, masquerade, published ports, inter-container policy, links and GRE tunnels in TC and XDP programs.\n" +
			"Begin with 'ebpnet check' and 'ebpnet load'. Global options may stand anywhere.\n" +
			"What a container engine made is also understood by the name or id that it has there.",
		Version:              version,
		EnableBashCompletion: true,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "state", Usage: "`DIR` of the store", Value: defaultState, EnvVars: []string{stateVariable}},
			&cli.StringFlag{Name: "pin", Usage: "`DIR` on a bpffs for the datapath", Value: defaultPin, EnvVars: []string{pinVariable}},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FORMAT` of what is printed: table or json", Value: "table"},
			cli.HelpFlag,
		},
		Before:         checkGlobals,
		Action:         group,
		ExitErrHandler: func(*cli.Context, error) {}, // main does it
		Commands: append([]*cli.Command{
			checkCommand(), loadCommand(), unloadCommand(), statusCommand(),
			networkCommand(), endpointCommand(), portCommand(), linkCommand(), tunnelCommand(),
			flowCommand(), fdbCommand(), statsCommand(), serveCommand(), helpCommand(),
		}, netavarkCommands()...),
	}
	for _, c := range app.Commands {
		complete(c)
	}
	app.OnUsageError = badUsage
	return app
}

// helpCommand is for the list of commands: its arguments become --help before
// they are read.
func helpCommand() *cli.Command {
	return &cli.Command{
		Name:      "help",
		Aliases:   []string{"h"},
		Usage:     "show all commands, or how one is used",
		UsageText: "ebpnet help [COMMAND]...",
	}
}

// complete gives a command and those below it what all have in common. The
// library's own command for help would take an argument "help" or "h" away from a
// command that has arguments.
func complete(c *cli.Command) {
	c.OnUsageError = badUsage
	c.HideHelpCommand = true
	if c.Action == nil {
		c.Action = group
	} else {
		c.Action = asRoot(c.Action)
		c.CustomHelpTemplate = cli.CommandHelpTemplate
	}
	for _, sub := range c.Subcommands {
		complete(sub)
	}
}

// asRoot has a command say first that it needs privileges, before it stumbles
// over one of them.
func asRoot(action cli.ActionFunc) cli.ActionFunc {
	return func(c *cli.Context) error {
		if err := agent.CheckRoot(); err != nil {
			return err
		}
		return action(c)
	}
}

func badUsage(c *cli.Context, err error, _ bool) error {
	said := err.Error()
	if name, ok := strings.CutPrefix(said, "flag provided but not defined: -"); ok {
		said = "unknown option " + option(name)
	}
	if name, ok := strings.CutPrefix(said, "flag needs an argument: -"); ok {
		said = option(name) + " needs a value"
	}
	return usagef("%s; see '%s --help'", said, c.Command.HelpName)
}

// option gives an option as it is written on the command line.
func option(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// group is the action of a command that only has others below it.
func group(c *cli.Context) error {
	commands := c.Command.Subcommands
	var names []string
	for _, sub := range commands {
		if !sub.Hidden && sub.Name != "help" {
			names = append(names, sub.Name)
		}
	}
	if given := c.Args().First(); given != "" {
		return usagef("unknown command %q: want one of %s", given, strings.Join(names, ", "))
	}
	return cli.ShowSubcommandHelp(c)
}

func checkGlobals(c *cli.Context) error {
	if format := c.String("output"); format != "table" && format != "json" {
		return usagef("output %q: want table or json", format)
	}
	for _, name := range []string{"state", "pin"} {
		if c.String(name) == "" || c.String(name)[0] != '/' {
			return usagef("--%s %q: want a path from /", name, c.String(name))
		}
	}
	return nil
}

// arguments gives the positional arguments, which must be as many as are
// named.
func arguments(c *cli.Context, names ...string) ([]string, error) {
	given := c.Args().Slice()
	if len(given) < len(names) {
		return nil, usagef("%s is missing; want %s", names[len(given)], synopsis(c, names))
	}
	if len(given) > len(names) {
		return nil, usagef("%q is one argument too many; want %s", given[len(names)], synopsis(c, names))
	}
	return given, nil
}

func synopsis(c *cli.Context, names []string) string {
	return strings.Join(append([]string{c.Command.HelpName}, names...), " ")
}

// required fails if a flag was not given.
func required(c *cli.Context, names ...string) error {
	for _, name := range names {
		if !c.IsSet(name) {
			return usagef("--%s is missing; see '%s --help'", name, c.Command.HelpName)
		}
	}
	return nil
}
