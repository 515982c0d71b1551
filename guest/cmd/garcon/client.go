package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/pflag"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/auberge-vm/auberge/guest/garcon/desktop"
	"github.com/auberge-vm/auberge/guest/garcon/hostcalls"
	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

// clientPatience is how long the host may take to open something.
const clientPatience = 10 * time.Second

// maxArgument bounds what the host is passed of one argument.
const maxArgument = 64 << 10

// clientOptions are the flags of garcon --client.
type clientOptions struct {
	url, terminal, selectFile     bool
	kind, title, path, extensions string

	// Of the container, unless a test has others.
	tokenPath string
	dial      hostcalls.Dialer
	patience  time.Duration
}

func (o *clientOptions) add(f *pflag.FlagSet) {
	// What follows the first argument is the terminal's program's.
	f.SetInterspersed(false)
	f.BoolVar(&o.url, "url", false, "open URLs or files, the arguments, on the host")
	f.BoolVar(&o.terminal, "terminal", false, "open a terminal on the host with this container's shell, or with the program that the arguments are")
	f.BoolVar(&o.selectFile, "selectfile", false, "have a person choose files, and print their names")
	f.StringVar(&o.kind, "type", "open-file", "what to choose: open-file, open-multi-file, saveas-file, folder or upload-folder")
	f.StringVar(&o.title, "title", "", "the title of the choice")
	f.StringVar(&o.path, "path", "", "where the choice begins")
	f.StringVar(&o.extensions, "extensions", "", "the extensions of files that can be chosen, with commas between")
}

// ask does what the flags say.
func (o *clientOptions) ask(ctx context.Context, args []string, out io.Writer) error {
	actions := 0
	for _, asked := range []bool{o.url, o.terminal, o.selectFile} {
		if asked {
			actions++
		}
	}
	if actions != 1 {
		return errors.New("--client needs one of --url, --terminal and --selectfile")
	}
	for _, arg := range append([]string{o.kind, o.title, o.path, o.extensions}, args...) {
		if len(arg) > maxArgument || !utf8.ValidString(arg) || strings.ContainsRune(arg, 0) {
			return fmt.Errorf("the argument %.40q is not UTF-8 or longer than %d bytes", arg, maxArgument)
		}
	}
	calls, err := o.prepare(args, out)
	if err != nil {
		return err
	}
	token, err := hostcalls.ReadToken(o.tokenPath)
	if err != nil {
		return fmt.Errorf("no token for this container, by which its host would know it: %w; only containers that the host's VM service started have one", err)
	}
	host, err := hostcalls.New(token, o.dial)
	if err != nil {
		return err
	}
	defer host.Close()
	for _, call := range calls {
		if err := call(ctx, host); err != nil {
			return plain(err)
		}
	}
	return nil
}

// A call asks the host for one thing.
type call func(context.Context, *hostcalls.Client) error

// prepare checks the arguments before anything is asked for.
func (o *clientOptions) prepare(args []string, out io.Writer) ([]call, error) {
	switch {
	case o.url:
		return o.openURLs(args)
	case o.terminal:
		return []call{func(ctx context.Context, host *hostcalls.Client) error {
			ctx, cancel := context.WithTimeout(ctx, o.patience)
			defer cancel()
			return host.OpenTerminal(ctx, &pb.OpenTerminalRequest{Params: args})
		}}, nil
	}
	if len(args) > 0 {
		return nil, fmt.Errorf("unexpected argument %q", args[0])
	}
	switch o.kind {
	case "open-file", "open-multi-file", "saveas-file", "folder", "upload-folder":
	default:
		return nil, fmt.Errorf("--type %q is none of open-file, open-multi-file, saveas-file, folder, upload-folder", o.kind)
	}
	path := o.path
	if path != "" && !strings.HasPrefix(path, "file:") {
		var err error
		if path, err = filepath.Abs(path); err != nil {
			return nil, err
		}
	}
	return []call{func(ctx context.Context, host *hostcalls.Client) error {
		resp, err := host.SelectFile(ctx, &pb.SelectFileRequest{Type: o.kind, Title: o.title, DefaultPath: path, AllowedExtensions: o.extensions})
		if err != nil {
			return err
		}
		for _, file := range resp.GetFiles() {
			if _, err := fmt.Fprintln(out, file); err != nil {
				return err
			}
		}
		return nil
	}}, nil
}

func (o *clientOptions) openURLs(args []string) ([]call, error) {
	if len(args) == 0 {
		return nil, errors.New("--url needs URLs to open")
	}
	var calls []call
	for _, arg := range args {
		scheme, _, ok := strings.Cut(arg, ":")
		switch {
		case filepath.IsAbs(arg):
			arg = desktop.FileURI(filepath.Clean(arg))
		case !ok || scheme == "" || strings.ContainsAny(scheme, "/?# "):
			return nil, fmt.Errorf("%q is neither a URL nor an absolute path", arg)
		}
		calls = append(calls, func(ctx context.Context, host *hostcalls.Client) error {
			ctx, cancel := context.WithTimeout(ctx, o.patience)
			defer cancel()
			return host.OpenUrl(ctx, &pb.OpenUrlRequest{Url: arg})
		})
	}
	return calls, nil
}

// plain says what a person can do about the host's answer.
func plain(err error) error {
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	switch s.Code() {
	case codes.ResourceExhausted:
		return fmt.Errorf("the host was asked for too much at once (%s); try again in a few seconds", s.Message())
	case codes.Unavailable, codes.DeadlineExceeded:
		return fmt.Errorf("the host does not answer (%s); its service vm_cicerone may not run", s.Message())
	case codes.Unimplemented:
		return fmt.Errorf("the host cannot do that (%s)", s.Message())
	}
	return fmt.Errorf("the host refused: %s", s.Message())
}
