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
// --network n" would take "--network" for an argument.
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
	)
	for i := 1; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			rest = append(rest, args[i+1:]...)
			break
		}
		if len(arg) < 2 || arg[0] != '-' {
			if sub := find(commands, arg); sub != nil && len(rest) == 0 {
				path = append(path, arg)
				commands, flags = sub.Subcommands, sub.Flags
			} else {
				rest = append(rest, arg)
			}
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
		i++
		if i < len(args) {
			*target = append(*target, args[i])
			continue
		}
		// What comes last has no value: so that the library says so, nothing
		// may follow it.
		if target == &globals {
			return slices.Concat(args[:1], globals)
		}
		return slices.Concat(args[:1], globals, path, options)
	}
	ordered := slices.Concat(args[:1], globals, path, options)
	if len(rest) == 0 {
		return ordered
	}
	return slices.Concat(ordered, []string{"--"}, rest)
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
