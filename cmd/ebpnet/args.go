package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// completionFlag is what the shell's completion ends its call with.
const completionFlag = "--generate-bash-completion"

// interspersed puts arguments into the order that the library reads: global
// options, command, its options, the rest. Without it "endpoint add web
// --network n" would take "--network" for an argument. If help is asked for,
// the result is the command and --help; the other arguments are dropped.
func interspersed(app *cli.App, args []string) []string {
	if len(args) == 0 {
		return args
	}
	if before := len(args) - 2; args[before+1] == completionFlag {
		// The library would take a bare "--" for the end of the options, and
		// run the command.
		if before >= 0 && args[before] == "--" {
			args[before] = "-"
		}
		return args
	}
	var (
		globals, path, options, rest []string
		commands, flags              = app.Commands, []cli.Flag(nil)
		help                         = asksForHelp(args[1:])
	)
	for i := 1; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			rest = append(rest, args[i+1:]...)
			break
		}
		if len(arg) < 2 || arg[0] != '-' {
			switch sub := find(commands, arg); {
			case len(rest) > 0:
				rest = append(rest, arg)
			case len(commands) > 0 && slices.Contains(cli.HelpFlag.Names(), arg):
				help = true // "help endpoint set" is "endpoint set --help"
			case sub != nil:
				path = append(path, arg)
				commands, flags = sub.Subcommands, sub.Flags
			default:
				rest = append(rest, arg)
			}
			continue
		}
		if isHelp(arg) {
			continue
		}
		target := &options
		flag := lookup(flags, arg)
		if flag == nil {
			if flag = lookup(app.Flags, arg); flag != nil {
				target = &globals
			}
		}
		*target = append(*target, arg)
		if !takesValue(flag) || strings.Contains(arg, "=") {
			continue
		}
		if i+1 < len(args) && !isOption(args[i+1], flags, app.Flags) {
			i++
			*target = append(*target, args[i])
			continue
		}
		if help {
			continue
		}
		// It has no value: so that the library says so, nothing may follow it.
		if target == &globals {
			return slices.Concat(args[:1], globals)
		}
		return slices.Concat(args[:1], globals, path, options)
	}
	ordered := slices.Concat(args[:1], globals, path, options)
	if help {
		ordered = slices.Concat(args[:1], path)
		if len(commands) == 0 || len(rest) == 0 {
			return append(ordered, "--help")
		}
		rest = rest[:1] // no command, which the group says
	}
	if len(rest) == 0 {
		return ordered
	}
	return slices.Concat(ordered, []string{"--"}, rest)
}

// asksForHelp tells whether the option is given that asks for help.
func asksForHelp(args []string) bool {
	if end := slices.Index(args, "--"); end >= 0 {
		args = args[:end]
	}
	return slices.ContainsFunc(args, isHelp)
}

func isHelp(arg string) bool { return isOption(arg, []cli.Flag{cli.HelpFlag}) }

// isOption tells whether an argument is one of these options, or the end of the
// options, and so no value.
func isOption(arg string, lists ...[]cli.Flag) bool {
	if len(arg) < 2 || arg[0] != '-' {
		return false
	}
	return arg == "--" || slices.ContainsFunc(lists, func(flags []cli.Flag) bool { return lookup(flags, arg) != nil })
}

func find(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

// lookup finds the flag that an argument like --name or --name=value sets.
func lookup(flags []cli.Flag, arg string) cli.Flag {
	name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

func takesValue(f cli.Flag) bool {
	documented, ok := f.(cli.DocGenerationFlag)
	return ok && documented.TakesValue()
}
