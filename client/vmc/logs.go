package vmc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func (a *app) logsCommand() *cobra.Command {
	var follow bool
	var lines uint32
	cmd := &cobra.Command{
		Use:   "logs NAME",
		Short: "Show what a VM has logged",
		Long: "Show the log of the VM called NAME, which need not run: what the guest's kernel and its\n" +
			"programs said, and what became of the VM. With -f, go on with what comes, over the VM's\n" +
			"next starts and restarts of the service, until the log is removed with the VM's disk.",
		Example: `  vmc logs termina -n 20
  vmc logs termina -f`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVM(a.running, a.withDisk),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("lines") && lines == 0 {
				return withCode(ExitUsage, errors.New("--lines 0: give at least 1, or leave it out for all of them"))
			}
			return a.withSession(func(ctx context.Context, s *session, args []string) error {
				l := &logReader{app: a, session: s, name: args[0], out: bufio.NewWriter(a.out)}
				if follow {
					return l.follow(ctx, lines)
				}
				return l.once(ctx, lines)
			})(cmd, args)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	cmd.Flags().Uint32VarP(&lines, "lines", "n", 0, "only the last `N` lines (default: all)")
	completeFlag(cmd, "lines", words())
	return cmd
}

// A logReader prints the log of a VM.
type logReader struct {
	app     *app
	session *session
	name    string
	out     *bufio.Writer
	// last are the lines printed last, by which the place is found again in a
	// log that is opened anew.
	last tail
}

// once prints what there is.
func (l *logReader) once(ctx context.Context, lines uint32) error {
	log, err := l.first(ctx, false, lines)
	if err != nil {
		return err
	}
	err = l.read(ctx, log, nil, false)
	if ctx.Err() != nil {
		return withCode(ExitFailed, errors.New("interrupted"))
	}
	return err
}

// retryPause is how long to wait before the log is opened again, when nothing
// tells that the service is back.
const retryPause = time.Second

// follow prints what there is and what comes.
func (l *logReader) follow(ctx context.Context, lines uint32) error {
	back, err := l.watch(ctx)
	if err != nil {
		return err
	}
	log, err := l.first(ctx, true, lines)
	if err != nil {
		return err
	}
	var skip *finder
	for {
		if err := l.read(ctx, log, skip, true); err != nil || ctx.Err() != nil {
			return err // being interrupted is how a person ends this
		}
		// The log was removed, or the service has ended.
		if log, skip, err = l.reopen(ctx, back, lines); err != nil || log == nil {
			return err
		}
	}
}

// watch returns a channel that says when vm_concierge has come to the bus.
func (l *logReader) watch(ctx context.Context) (<-chan *godbus.Signal, error) {
	signals := make(chan *godbus.Signal, 16)
	l.session.conn.Signal(signals)
	err := l.session.conn.AddMatchSignalContext(ctx, godbus.WithMatchSender("org.freedesktop.DBus"),
		godbus.WithMatchMember("NameOwnerChanged"), godbus.WithMatchArg(0, l.session.table.BusName))
	if err != nil {
		return nil, withCode(ExitUnreachable, fmt.Errorf("ask the bus for signals: %w", err))
	}
	return signals, nil
}

// reopen opens the log again, when the service is back, and says what of it
// has been printed already. Without an error and without a log, the log is
// gone for good.
func (l *logReader) reopen(ctx context.Context, back <-chan *godbus.Signal, lines uint32) (*os.File, *finder, error) {
	said := false
	for {
		log, skip, err := l.openAgain(ctx, lines)
		switch {
		case err == nil:
			if said {
				fmt.Fprintln(l.app.err, "vmc: vm_concierge is back")
			}
			return log, skip, nil
		case ctx.Err() != nil:
			return nil, nil, nil
		case exitCodeOf(err) == ExitNotFound:
			fmt.Fprintf(l.app.err, "vmc: the log of %s was removed\n", l.name)
			return nil, nil, nil
		case !l.session.conn.Connected():
			return nil, nil, withCode(ExitUnreachable, errors.New("the bus has ended the connection"))
		case exitCodeOf(err) != ExitUnreachable:
			return nil, nil, err
		}
		if !said {
			fmt.Fprintln(l.app.err, "vmc: vm_concierge has left the bus; waiting for it")
			said = true
		}
		wait := time.NewTimer(retryPause)
		select {
		case <-back:
		case <-wait.C:
		case <-ctx.Done():
		}
		wait.Stop()
	}
}

// openAgain opens the log from its beginning and finds out how much of it to
// skip: all up to the last lines that were printed, should they still be there.
func (l *logReader) openAgain(ctx context.Context, lines uint32) (*os.File, *finder, error) {
	if len(l.last) == 0 {
		log, err := l.open(ctx, true, lines)
		return log, nil, err
	}
	log, err := l.open(ctx, true, 0)
	if err != nil {
		return nil, nil, err
	}
	// What there is now is in the other stream too, which began before.
	now, err := l.open(ctx, false, 0)
	if err != nil {
		log.Close()
		return nil, nil, err
	}
	defer now.Close()
	stop := context.AfterFunc(ctx, func() { now.Close() })
	defer stop()
	search := newFinder(l.last, 0)
	at := 0
	for r := bufio.NewReader(now); ; {
		line, err := r.ReadString('\n')
		if line != "" && search.feed(line) {
			at = search.fed
		}
		if err != nil {
			break
		}
	}
	if at == 0 {
		fmt.Fprintln(l.app.err, "vmc: lines may be missing here")
		return log, nil, nil
	}
	return log, newFinder(l.last, at), nil
}

// read prints a log to its end, or without its beginning up to what skip
// finds. Half a line at the end of a log that will be opened again is left to
// that.
func (l *logReader) read(ctx context.Context, log *os.File, skip *finder, again bool) error {
	defer log.Close()
	stop := context.AfterFunc(ctx, func() { log.Close() })
	defer stop()
	r := bufio.NewReader(log)
	for {
		line, err := r.ReadString('\n')
		switch {
		case line == "", err != nil && again:
		case skip != nil:
			if skip.feed(line) {
				skip = nil
			}
		default:
			l.last = l.last.add(line)
			l.out.WriteString(line)
		}
		// What is there is shown before more is waited for.
		if r.Buffered() == 0 || err != nil {
			if err := l.out.Flush(); err != nil {
				return withCode(ExitFailed, fmt.Errorf("print the log: %w", err))
			}
		}
		if err == io.EOF || ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return withCode(ExitFailed, fmt.Errorf("read the log of %s: %w", l.name, err))
		}
	}
}

// first opens the log for the first time, when its name may be a mistake.
func (l *logReader) first(ctx context.Context, follow bool, lines uint32) (*os.File, error) {
	log, err := l.open(ctx, follow, lines)
	if exitCodeOf(err) == ExitNotFound {
		names := append(l.app.running(ctx, l.session), l.app.withDisk(ctx, l.session)...)
		return nil, withCode(ExitNotFound, fmt.Errorf("%w%s", err, suggestion(l.name, names)))
	}
	return log, err
}

func (l *logReader) open(ctx context.Context, follow bool, lines uint32) (*os.File, error) {
	options := dict{"follow": godbus.MakeVariant(follow)}
	if lines > 0 {
		options["lines"] = godbus.MakeVariant(lines)
	}
	var fd godbus.UnixFD
	if err := l.session.plain(ctx, "OpenVmLogs", []any{l.name, l.app.owner, options}, &fd); err != nil {
		return nil, err
	}
	// So that reading it can be ended.
	if err := unix.SetNonblock(int(fd), true); err != nil {
		unix.Close(int(fd))
		return nil, err
	}
	return os.NewFile(uintptr(fd), "the log of "+l.name), nil
}

func exitCodeOf(err error) int {
	var coded *exitError
	if errors.As(err, &coded) {
		return coded.code
	}
	return ExitFailed
}
