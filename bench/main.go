// Command bench measures ebpnet beside its rivals, in one interleaved run on
// one machine: see README.md in its directory for what the figures mean.
//
// It builds every topology in network namespaces of its own, sends traffic
// through each in turn, removes them, and prints a table. With --ci it holds
// what it measured against floors.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// options is what the command line asks for.
type options struct {
	rounds     int
	duration   time.Duration // of one measurement
	cpu        int           // that client and server share
	json       string        // file for the figures; empty: none
	svg        string        // directory for the plots; empty: none
	ci         bool          // only what floors need, held against them
	floors     []floor       // with ci
	topologies []topology
	measures   []measure
}

// errUsage marks a command line that cannot be carried out.
var errUsage = errors.New("usage")

// Exit codes, as in ebpnet itself.
const (
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == peerCommand {
		exit(runPeer(os.Args[2], os.Stdout))
	}
	if len(os.Args) > 1 && os.Args[1] == generateCommand {
		exit(generate(os.Args[2:], os.Stdout, os.Stderr))
	}
	if len(os.Args) > 1 && os.Args[1] == sweepCommand {
		exit(measureSweep(os.Args[2:], os.Stdout))
	}
	exit(start(os.Args[1:]))
}

func exit(err error) {
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		os.Exit(0)
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(exitUsage)
	default:
		// A line for each of several.
		fmt.Fprintln(os.Stderr, "bench:", strings.ReplaceAll(err.Error(), "\n", "\nbench: "))
		os.Exit(exitFailure)
	}
}

func start(args []string) error {
	opt, err := parse(args, os.Stderr)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("not root: making network namespaces needs root")
	}
	if err := opt.tryFiles(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()

	started, progress := time.Now(), progressTo(os.Stderr)
	rep, err := measureAndShow(ctx, opt, os.Stdout, progress)
	if err == nil && opt.ci {
		err = judge(rep, opt, os.Stderr, func(second options) (report, error) {
			return measureAndShow(ctx, second, os.Stdout, progress)
		})
	}
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("interrupted: %w", err)
	}
	fmt.Fprintf(os.Stderr, "bench: took %s\n", time.Since(started).Round(time.Second))
	return err
}

// parse reads the command line; help goes to w. Errors wrap errUsage, or are
// flag.ErrHelp.
func parse(args []string, w io.Writer) (options, error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	opt := options{}
	only := ""
	flags.IntVar(&opt.rounds, "rounds", 5, "how often everything is measured, at least 1")
	flags.DurationVar(&opt.duration, "duration", time.Second, "of one measurement")
	flags.IntVar(&opt.cpu, "cpu", min(1, runtime.NumCPU()-1), "the `CPU` that client and server share")
	flags.StringVar(&opt.json, "json", "", "also write the figures to `FILE`")
	flags.StringVar(&opt.svg, "svg", "", "also write plots into `DIRECTORY`, which is made")
	flags.BoolVar(&opt.ci, "ci", false, fmt.Sprintf("measure only what has a floor, in %d rounds of %s unless told, and fail below it", ciRounds, ciDuration))
	flags.StringVar(&only, "only", "", "comma-separated `NAMES` of families, topologies and measures; none of a kind means all of it")

	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		help(flags, w)
		return options{}, err
	case err != nil:
		return options{}, fmt.Errorf("%w: %w", errUsage, err)
	case flags.NArg() > 0:
		return options{}, fmt.Errorf("%w: unexpected argument %q: there are only flags", errUsage, flags.Arg(0))
	case opt.rounds < 1:
		return options{}, fmt.Errorf("%w: --rounds %d: want at least 1", errUsage, opt.rounds)
	case opt.duration <= 0:
		return options{}, fmt.Errorf("%w: --duration %s: want more than nothing", errUsage, opt.duration)
	case opt.cpu < 0 || opt.cpu >= runtime.NumCPU():
		return options{}, fmt.Errorf("%w: --cpu %d: want 0 to %d", errUsage, opt.cpu, runtime.NumCPU()-1)
	}
	given := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if opt.ci {
		if given["only"] {
			return options{}, fmt.Errorf("%w: --ci and --only exclude each other: the floors say what is measured", errUsage)
		}
		if !given["rounds"] {
			opt.rounds = ciRounds
		}
		if !given["duration"] {
			opt.duration = ciDuration
		}
		opt.hold(floors())
		return opt, nil
	}
	opt.topologies, opt.measures = topologies(), measures()
	if given["only"] {
		return opt, opt.choose(only)
	}
	return opt, nil
}

// choose leaves the topologies and measures that the list names.
func (opt *options) choose(list string) error {
	names, known := strings.Split(list, ","), allNames()
	for _, name := range names {
		if !slices.Contains(known, name) {
			return fmt.Errorf("%w: --only %q: want names that --help lists, with commas between", errUsage, name)
		}
	}
	opt.topologies = choose(opt.topologies, func(t topology) bool {
		return slices.Contains(names, t.name) || slices.Contains(names, t.family)
	})
	opt.measures = choose(opt.measures, func(m measure) bool { return slices.Contains(names, m.name) })
	if len(opt.turns(0)) == 0 {
		return fmt.Errorf("%w: --only %q: that measure is not taken of these topologies", errUsage, list)
	}
	return nil
}

// choose gives the elements wanted, or all if none is.
func choose[T any](all []T, wanted func(T) bool) []T {
	chosen := slices.DeleteFunc(slices.Clone(all), func(t T) bool { return !wanted(t) })
	if len(chosen) == 0 {
		return all
	}
	return chosen
}

func allNames() []string {
	var names []string
	for _, f := range families() {
		names = append(names, f.name)
	}
	for _, t := range topologies() {
		names = append(names, t.name)
	}
	for _, m := range measures() {
		names = append(names, m.name)
	}
	return names
}

func help(flags *flag.FlagSet, w io.Writer) {
	fmt.Fprintln(w, "bench compares ebpnet with its rivals, interleaved, on one CPU.")
	fmt.Fprintln(w, "Example: go run ./bench --rounds 5 --only wire,bridge,tcp_rr --json bench.json")
	for _, f := range families() {
		fmt.Fprintf(w, "\nTopologies of family %s, %s:\n", f.name, f.about)
		for _, t := range f.of(topologies()) {
			fmt.Fprintf(w, "  %-23s %s\n", t.name, t.about)
		}
	}
	fmt.Fprintln(w, "\nMeasures:")
	for _, m := range measures() {
		fmt.Fprintf(w, "  %-23s %s\n", m.name, m.about)
	}
	fmt.Fprintln(w, "\nFlags:")
	flags.SetOutput(w)
	flags.PrintDefaults()
	fmt.Fprintln(w, "\nbench generate --help tells of the generator of frames alone.")
	fmt.Fprintln(w, "bench sweep measures a tick of the datapath's timer with full tables.")
	fmt.Fprintln(w, "EBPNET names the ebpnet binary to measure (default bin/ebpnet).")
}

// turn is one measurement of a round.
type turn struct {
	measure  measure
	topology topology
}

// turns lists a round's measurements: for each measure of a family one topology
// right after another. Each round begins with another topology, so that none
// always follows the same neighbour.
func (opt options) turns(round int) []turn {
	var all []turn
	for _, f := range families() {
		for _, m := range opt.measures {
			if !slices.Contains(f.measures, m.name) {
				continue
			}
			over := slices.DeleteFunc(f.of(opt.topologies), func(t topology) bool { return !opt.wanted(m, t) })
			for i := range over {
				all = append(all, turn{m, over[(round+i)%len(over)]})
			}
		}
	}
	return all
}

// measureAll builds the topologies, runs every round and removes everything,
// whatever happens in between.
func measureAll(ctx context.Context, opt options, progress func(string)) (rep report, err error) {
	defer progress("")
	paths := map[string]path{}
	for i, t := range opt.topologies {
		progress(fmt.Sprintf("building %s (%d of %d)", t.name, i+1, len(opt.topologies)))
		l := newLab(ctx, t.name, opt.cpu)
		defer func() { err = errors.Join(err, l.close()) }()
		paths[t.name] = t.build(l)
		if l.err != nil {
			return report{}, fmt.Errorf("topology %s: %w", t.name, l.err)
		}
	}

	rep = newReport(opt)
	all := opt.rounds * len(rep.Results)
	for round := range opt.rounds {
		for i, now := range opt.turns(round) {
			m, t := now.measure, now.topology
			done := round*len(rep.Results) + i
			progress(fmt.Sprintf("round %d of %d, %d%%: %s %s", round+1, opt.rounds, 100*done/all, m.name, t.name))
			s, err := m.run(ctx, paths[t.name], opt)
			if err == nil {
				err = ctx.Err() // of a part of the time
			}
			if err != nil {
				return report{}, fmt.Errorf("round %d, %s over %s: %w", round+1, m.name, t.name, err)
			}
			rep.add(m, t, s)
		}
	}
	rep.finish()
	return rep, nil
}

// progressTo gives a function that shows one changing line on a terminal, an
// empty text clearing it, and does nothing elsewhere.
func progressTo(f *os.File) func(string) {
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return func(string) {}
	}
	const clearLine = "\r\x1b[K"
	return func(text string) { fmt.Fprint(f, clearLine, text) }
}

// apart keeps a terminal's interrupt from a child, so that what builds and
// removes things runs to its end; and has the kernel kill it if bench dies.
func apart() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
}
