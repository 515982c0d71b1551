package vmc

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
)

func (a *app) monitorCommand() *cobra.Command {
	var m monitor
	cmd := &cobra.Command{
		Use:   "monitor",
		Short: "Print the signals of the services as lines of JSON",
		Long: "Print each signal about your VMs as one JSON object a line, with time, signal, interface\n" +
			"and payload, until it is interrupted. A service that goes away is waited for. Root hears\n" +
			"of VMs only with --all, and then of everybody's.",
		Example: `  vmc monitor --vm termina | jq -r .signal
  vmc monitor --until VmStoppedSignal --vm termina`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if m.until, err = signalName(m.until); err != nil {
				return err
			}
			m.app = a
			return m.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&m.all, "all", false, "everybody's VMs (an administrator's right)")
	f.StringVar(&m.vm, "vm", "", "only signals about the VM called `NAME`")
	f.StringVar(&m.until, "until", "", "end after the first `SIGNAL` of this name")
	completeFlag(cmd, "until", monitored)
	if err := cmd.RegisterFlagCompletionFunc("vm", a.completeVM(a.running, a.withDisk)); err != nil {
		panic(err)
	}
	return cmd
}

// signalName completes the name of a signal, whose ending may be left out.
func signalName(name string) (string, error) {
	if name == "" {
		return "", nil
	}
	var short []string
	for _, s := range monitored() {
		if s == name || s == name+"Signal" {
			return s, nil
		}
		short = append(short, strings.TrimSuffix(s, "Signal"))
	}
	return "", withCode(ExitUsage, fmt.Errorf("there is no signal %q%s", name,
		suggestion(strings.TrimSuffix(name, "Signal"), short)))
}

// monitored are the signals that there are.
func monitored() []string {
	all := signalNames()
	for _, of := range services() {
		for _, s := range of.own.Signals {
			all = append(all, s.Name)
		}
	}
	return sorted(all)
}

// A monitor prints signals.
type monitor struct {
	app       *app
	all       bool
	vm, until string

	watched []*watched
}

// A watched is a service whose signals are printed.
type watched struct {
	*session
	// at is the unique name of the service's connection, which its signals
	// come from; empty while it is not on the bus.
	at string
}

// A line is what is printed of a signal.
type line struct {
	Time      string          `json:"time"`
	Signal    string          `json:"signal"`
	Interface string          `json:"interface"`
	Payload   json.RawMessage `json:"payload"`
}

func (m *monitor) run(ctx context.Context) error {
	s, err := m.app.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	signals := make(chan *godbus.Signal)
	s.conn.Signal(signals)
	for _, of := range services() {
		m.watched = append(m.watched, &watched{session: s.with(of)})
	}
	if err := m.watch(ctx); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case sig := <-signals:
			if sig == nil {
				return withCode(ExitUnreachable, fmt.Errorf("the bus has ended the connection"))
			}
			done, err := m.hear(ctx, sig)
			if done || err != nil {
				return err
			}
		}
	}
}

// watch asks the bus for what the services send to everybody, which is
// nothing on a system bus, and for their coming and going.
func (m *monitor) watch(ctx context.Context) error {
	for _, w := range m.watched {
		if err := w.match(ctx); err != nil {
			return err
		}
		err := w.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, w.table.BusName).Store(&w.at)
		if err != nil {
			if w == m.watched[0] { // the other one may be started by the first container
				m.say(w.program + " is not on this bus; waiting for it")
			}
			continue
		}
		if err := m.subscribe(ctx, w); err != nil {
			return err
		}
	}
	if !m.all && os.Geteuid() == 0 {
		m.say("root hears of VMs with --all only")
	}
	if m.watched[0].at != "" {
		m.say("listening")
	}
	return nil
}

// match asks the bus for what a service sends to everybody, and for its coming
// and going.
func (s *session) match(ctx context.Context) error {
	for _, rule := range [][]godbus.MatchOption{
		{godbus.WithMatchSender(s.table.BusName), godbus.WithMatchObjectPath(godbus.ObjectPath(s.table.Path))},
		{godbus.WithMatchSender("org.freedesktop.DBus"), godbus.WithMatchMember("NameOwnerChanged"), godbus.WithMatchArg(0, s.table.BusName)},
	} {
		if err := s.conn.AddMatchSignalContext(ctx, rule...); err != nil {
			return withCode(ExitUnreachable, fmt.Errorf("ask the bus for signals: %w", err))
		}
	}
	return nil
}

func (m *monitor) say(text string) { fmt.Fprintln(m.app.err, "vmc:", text) }

func (m *monitor) subscribe(ctx context.Context, w *watched) error {
	if !m.all {
		return nil
	}
	return w.plain(ctx, "Subscribe", nil)
}

// hear prints a signal, and says whether it was the one to end with.
func (m *monitor) hear(ctx context.Context, sig *godbus.Signal) (done bool, err error) {
	if sig.Name == "org.freedesktop.DBus.NameOwnerChanged" && sig.Sender == "org.freedesktop.DBus" {
		return false, m.moved(ctx, sig)
	}
	// Anybody may send a signal; only the services' count.
	var from *watched
	for _, w := range m.watched {
		if w.at != "" && sig.Sender == w.at && string(sig.Path) == w.table.Path {
			from = w
		}
	}
	if from == nil {
		return false, nil
	}
	iface, name := splitMember(sig.Name)
	payload, vm, err := from.readSignal(iface, name, sig.Body)
	if err != nil {
		m.say(fmt.Sprintf("signal %s cannot be read: %v", name, err))
		return false, nil
	}
	if m.vm != "" && vm != m.vm {
		return false, nil
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	err = e.Encode(line{Time: time.Now().UTC().Format(time.RFC3339Nano), Signal: name, Interface: iface, Payload: payload})
	if err != nil {
		return false, err
	}
	if _, err := m.app.out.Write(out.Bytes()); err != nil {
		return false, withCode(ExitFailed, fmt.Errorf("print a signal: %w", err))
	}
	return name == m.until, nil
}

// moved notes that a service came or went.
func (m *monitor) moved(ctx context.Context, sig *godbus.Signal) error {
	var name, before, after string
	if err := godbus.Store(sig.Body, &name, &before, &after); err != nil {
		return nil
	}
	for _, w := range m.watched {
		if name != w.table.BusName || after == w.at {
			continue
		}
		w.at = after
		if after == "" {
			m.say(w.program + " has left the bus; waiting for it")
			return nil
		}
		if err := m.subscribe(ctx, w); err != nil {
			m.say(err.Error()) // it may have left again; its return is announced
			return nil
		}
		m.say(w.program + " is on the bus; listening")
	}
	return nil
}

func splitMember(name string) (iface, member string) {
	at := strings.LastIndexByte(name, '.')
	return name[:max(at, 0)], name[at+1:]
}

// readSignal makes JSON of a signal's arguments, and finds the VM that it is
// about.
func (s *service) readSignal(iface, name string, body []any) (payload json.RawMessage, vm string, err error) {
	if iface != s.table.Interface {
		return s.readPlain(name, body)
	}
	msg, err := s.readPayload(name, body)
	if err != nil {
		return nil, "", err
	}
	payload, err = messageJSON(msg)
	return payload, cmp.Or(stringField(msg, "vm_name"), stringField(msg, "name")), err
}

var errOlder = errors.New("this vmc is older than the service and does not know it")

// readPayload reads a signal that carries one message.
func (s *service) readPayload(name string, body []any) (proto.Message, error) {
	for _, known := range s.table.Signals {
		if known.Name != name {
			continue
		}
		b, ok := []byte(nil), false
		if len(body) == 1 {
			b, ok = body[0].([]byte)
		}
		if !ok {
			return nil, fmt.Errorf("its arguments are not one ay")
		}
		msg := fresh(known.Payload)
		return msg, proto.Unmarshal(b, msg)
	}
	return nil, errOlder
}

// readPlain reads a signal of ours, whose arguments are plain values.
func (s *service) readPlain(name string, body []any) (json.RawMessage, string, error) {
	for _, known := range s.own.Signals {
		if known.Name != name {
			continue
		}
		if len(body) != len(known.Args) {
			return nil, "", fmt.Errorf("it has %d arguments, not %d", len(body), len(known.Args))
		}
		values, vm := map[string]any{}, ""
		for i, arg := range known.Args {
			values[arg.Name] = plainValue(body[i])
			if d, ok := values[arg.Name].(map[string]any); ok && vm == "" {
				vm, _ = d["name"].(string)
			}
		}
		text, err := json.Marshal(values)
		return text, vm, err
	}
	return nil, "", errOlder
}
