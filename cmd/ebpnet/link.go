package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

func linkCommand() *cli.Command {
	return &cli.Command{
		Name:        "link",
		Usage:       "permission for one endpoint to open connections to another's ports",
		Description: "Example: ebpnet link add web redis1:redis --port 6379/tcp",
		Subcommands: []*cli.Command{
			{
				Name:      "add",
				Aliases:   []string{"create"},
				Usage:     "link a client to a server",
				UsageText: "ebpnet link add CLIENT SERVER[:ALIAS] [--port PORT[-END][/tcp|udp]]...",
				Description: "Without --port, to what SERVER exposes. On several hosts, add it on the client's and on the server's.\n" +
					"Example: ebpnet link add web redis1:redis --port 6379/tcp",
				Flags:  []cli.Flag{&cli.StringSliceFlag{Name: "port", Usage: "`PORT` of the server; may be repeated"}},
				Action: addLink,
			},
			{
				Name:        "rm",
				Usage:       "remove a link; its connections end with the next packet",
				UsageText:   "ebpnet link rm CLIENT SERVER",
				Description: "Example: ebpnet link rm web redis1",
				Action: func(c *cli.Context) error {
					client, server, err := linkArguments(c)
					if err != nil {
						return err
					}
					return withAgent(c, func(a *agent.Agent) error { return a.RemoveLink(client, server) })
				},
			},
			{
				Name:        "ls",
				Usage:       "list links",
				UsageText:   "ebpnet link ls",
				Description: "Example: ebpnet link ls -o json",
				Action:      listLinks,
			},
			{
				Name:        "inspect",
				Usage:       "show a link whole, as JSON",
				UsageText:   "ebpnet link inspect CLIENT SERVER",
				Description: "Example: ebpnet link inspect web redis1",
				Action: func(c *cli.Context) error {
					client, server, err := linkArguments(c)
					if err != nil {
						return err
					}
					return read(c, func(tx *store.Tx) error {
						l, err := tx.Link(client, server)
						if err != nil {
							return err
						}
						return inspect(c, l)
					})
				},
			},
			{
				Name:        "env",
				Usage:       "print a client's links as 'docker run --link' sets them",
				UsageText:   "ebpnet link env CLIENT",
				Description: "Example: env $(ebpnet link env web) ./app",
				Action:      printLinkLines(func(l agent.Linked) []string { return l.Env(l.To) }),
			},
			{
				Name:        "hosts",
				Usage:       "print a client's links as lines for /etc/hosts",
				UsageText:   "ebpnet link hosts CLIENT",
				Description: "Example: ebpnet link hosts web >>/etc/netns/web/hosts",
				Action:      printLinkLines(func(l agent.Linked) []string { return l.Hosts(l.To) }),
			},
		},
	}
}

func addLink(c *cli.Context) error {
	args, err := arguments(c, "CLIENT", "SERVER[:ALIAS]")
	if err != nil {
		return err
	}
	var l spec.Link
	if l.Server, l.Alias, err = spec.ParseLink(args[1]); err != nil {
		return err
	}
	if l.Client, err = endpointCalled(c, args[0]); err != nil {
		return err
	}
	if l.Server, err = endpointCalled(c, l.Server); err != nil {
		return err
	}
	for _, s := range c.StringSlice("port") {
		p, err := spec.ParsePorts(s)
		if err != nil {
			return err
		}
		l.Ports = append(l.Ports, p)
	}
	return withAgent(c, func(a *agent.Agent) error {
		l, err := a.AddLink(l)
		if err != nil {
			return err
		}
		return printLinks(c, l, []spec.Link{l})
	})
}

func linkArguments(c *cli.Context) (client, server string, err error) {
	args, err := arguments(c, "CLIENT", "SERVER")
	if err != nil {
		return "", "", err
	}
	if client, err = endpointCalled(c, args[0]); err != nil {
		return "", "", err
	}
	server, err = endpointCalled(c, args[1])
	return client, server, err
}

func listLinks(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	return read(c, func(tx *store.Tx) error {
		links, err := tx.Links()
		if err != nil {
			return err
		}
		return printLinks(c, emptyIfNil(links), links)
	})
}

func printLinks(c *cli.Context, data any, links []spec.Link) error {
	t := table{headings: []string{"CLIENT", "SERVER", "ALIAS", "PORTS"}}
	for _, l := range links {
		t.add(l.Client, l.Server, l.Alias, join(l.Ports))
	}
	return print(c, data, one(t))
}

// printLinkLines prints lines of text for each link of a client; as JSON, a
// list of them.
func printLinkLines(lines func(agent.Linked) []string) cli.ActionFunc {
	return func(c *cli.Context) error {
		client, err := argumentCalled(c, "CLIENT", endpointCalled)
		if err != nil {
			return err
		}
		all := []string{}
		err = read(c, func(tx *store.Tx) error {
			links, err := agent.LinksFrom(tx, client)
			for _, l := range links {
				all = append(all, lines(l)...)
			}
			return err
		})
		if err != nil || c.String("output") == "json" {
			if err == nil {
				err = inspect(c, all)
			}
			return err
		}
		for _, line := range all {
			if _, err := fmt.Fprintln(c.App.Writer, line); err != nil {
				return err
			}
		}
		return nil
	}
}
