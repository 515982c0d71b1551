// Command shell runs commands in a test host, to try things by hand.
//
//	go run ./test/testhost/shell -- CMD ARG...        boots one, runs, takes it away
//
// Or one that stays, from several shells:
//
//	go run ./test/testhost/shell start --socket S &   until stop or a signal
//	go run ./test/testhost/shell exec --socket S -- CMD ARG...
//	go run ./test/testhost/shell login --socket S alice tty1
//	go run ./test/testhost/shell exec --socket S --session alice-tty1 -- CMD ARG...
//	go run ./test/testhost/shell power --socket S off|start|reboot|crash|sleep|wake|check
//	go run ./test/testhost/shell stop --socket S
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/auberge-vm/auberge/test/testhost"
	"github.com/auberge-vm/auberge/test/testhost/wire"
)

var (
	socket string
	shares []string
	as     wire.Exec
)

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := root().ExecuteContext(ctx)
	var failed *testhost.ExitError
	if errors.As(err, &failed) && failed.Exit.Error == "" {
		os.Exit(failed.Exit.Code)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func root() *cobra.Command {
	top := &cobra.Command{
		Use: "shell [-- CMD ARG...]", Args: cobra.MinimumNArgs(1), SilenceErrors: true, SilenceUsage: true,
		RunE: func(c *cobra.Command, args []string) error {
			h, err := boot(c.Context())
			if err != nil {
				return err
			}
			defer h.Close()
			return run(c.Context(), h, args)
		},
	}
	top.PersistentFlags().StringVar(&socket, "socket", "", "where a host that stays is reached")
	command := func(use string, args cobra.PositionalArgs, do func(ctx context.Context, h *testhost.Host, args []string) error) *cobra.Command {
		return &cobra.Command{Use: use, Args: args, RunE: func(c *cobra.Command, args []string) error {
			if socket == "" {
				return errors.New("which host? --socket is missing")
			}
			return do(c.Context(), testhost.Attach(socket), args)
		}}
	}
	start := command("start", cobra.NoArgs, func(ctx context.Context, _ *testhost.Host, _ []string) error { return start(ctx) })
	for _, c := range []*cobra.Command{top, start} {
		c.Flags().StringArrayVar(&shares, "share", nil, "DIR=TARGET: a directory of this machine to mount there")
	}
	exec := command("exec -- CMD ARG...", cobra.MinimumNArgs(1), run)
	for _, c := range []*cobra.Command{top, exec} {
		c.Flags().StringVar(&as.User, "user", "", "run as this user, without a login")
		c.Flags().StringVar(&as.Session, "session", "", "run in this login, as `login` printed it")
		c.Flags().StringVar(&as.Dir, "dir", "", "run in this directory")
	}
	top.AddCommand(start, exec,
		command("login USER [TTY]", cobra.RangeArgs(1, 2), func(ctx context.Context, h *testhost.Host, args []string) error {
			s, err := h.Login(ctx, args[0], strings.Join(args[1:], ""))
			if err == nil {
				fmt.Println(s.Name)
			}
			return err
		}),
		command("logout SESSION", cobra.ExactArgs(1), func(ctx context.Context, h *testhost.Host, args []string) error {
			return h.Session(args[0]).Logout(ctx)
		}),
		command("power ACTION", cobra.ExactArgs(1), func(ctx context.Context, _ *testhost.Host, args []string) error {
			return ask(ctx, testhost.PowerPath+"?do="+url.QueryEscape(args[0]))
		}),
		command("stop", cobra.NoArgs, func(ctx context.Context, _ *testhost.Host, _ []string) error { return ask(ctx, stopPath) }))
	return top
}

const stopPath = "/stop"

func boot(ctx context.Context) (*testhost.Host, error) {
	o := testhost.Options{Log: log.Printf}
	for _, s := range shares {
		dir, target, ok := strings.Cut(s, "=")
		if !ok {
			return nil, fmt.Errorf("--share %s is not DIR=TARGET", s)
		}
		o.Shares = append(o.Shares, testhost.Share{Dir: dir, Target: target})
	}
	return testhost.Boot(ctx, o)
}

func run(ctx context.Context, h *testhost.Host, args []string) error {
	e := as
	e.Args = args
	c := testhost.Cmd{Exec: e, Stdout: os.Stdout, Stderr: os.Stderr}
	// Somebody's terminal would keep the request open.
	if info, err := os.Stdin.Stat(); err == nil && info.Mode()&os.ModeCharDevice == 0 {
		c.Stdin = os.Stdin
	}
	return h.Do(ctx, c)
}

// start boots a host and serves it until it is told to stop.
func start(ctx context.Context) error {
	h, err := boot(ctx)
	if err != nil {
		return err
	}
	defer h.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	mux := http.NewServeMux()
	mux.Handle("/", h.Handler())
	mux.HandleFunc("POST "+stopPath, func(http.ResponseWriter, *http.Request) { cancel() })
	os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	log.Printf("test host: ready at %s, console %s", socket, h.Console())
	server := wire.Server(mux)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
		err := server.Shutdown(context.WithoutCancel(ctx))
		<-served
		return err
	}
}

// ask has the program that serves the host do something.
func ask(ctx context.Context, path string) error {
	client := http.Client{Transport: wire.Transport(func() (net.Conn, error) { return net.Dial("unix", socket) })}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://testhost"+path, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(response.Body)
		return errors.New(strings.TrimSpace(string(text)))
	}
	return nil
}
