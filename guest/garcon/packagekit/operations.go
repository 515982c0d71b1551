package packagekit

import (
	"context"
	"errors"
	"log/slog"

	"github.com/auberge-vm/auberge/guest/garcon/turn"
)

// A Phase is what an operation does.
type Phase int

// The phases, in the order in which they come.
const (
	Downloading Phase = iota + 1
	Installing
	Uninstalling
)

// A Reporter hears how operations go on. Its methods do not wait.
type Reporter interface {
	// Progress comes whenever the phase or, within one, the percentage is
	// further.
	Progress(op Operation, phase Phase, percent uint32)
	// Done comes once, last; err is nil for success.
	Done(op Operation, err error)
}

// An Operation changes packages.
type Operation struct {
	Removes bool
	// UUID is whatever the one who began it calls it.
	UUID string
}

// ErrBusy says that another operation is not over yet.
var ErrBusy = errors.New("another package is being installed or removed; try again when that is over")

var errStopping = errors.New("the container's agent is stopping; what could not be cancelled goes on without it")

// Operations installs and removes, one at a time.
type Operations struct {
	client *Client
	report Reporter
	log    *slog.Logger

	turn *turn.Turn
}

// NewOperations returns operations without any; Close ends them.
func NewOperations(client *Client, report Reporter, log *slog.Logger) *Operations {
	return &Operations{client: client, report: report, log: log, turn: turn.New(errStopping)}
}

// Close cancels what goes on and waits for its last report.
func (o *Operations) Close() { o.turn.Close() }

// InstallFile begins to install a package file. ctx is for the beginning only.
func (o *Operations) InstallFile(ctx context.Context, path, uuid string) error {
	if err := checkFile(path); err != nil {
		return err
	}
	return o.begin(ctx, Operation{UUID: uuid}, func(context.Context) (string, []any, error) {
		return "InstallFiles", []any{uint64(0), []string{path}}, nil
	})
}

// InstallPackage begins to install a package by its id.
func (o *Operations) InstallPackage(ctx context.Context, id, uuid string) error {
	if err := CheckID(id); err != nil {
		return err
	}
	return o.begin(ctx, Operation{UUID: uuid}, func(context.Context) (string, []any, error) {
		return "InstallPackages", []any{uint64(0), []string{id}}, nil
	})
}

// RemoveOwner begins to remove the package that a file belongs to, with what
// was installed because of it. What others depend on is not removed.
func (o *Operations) RemoveOwner(ctx context.Context, path string) error {
	return o.begin(ctx, Operation{Removes: true}, func(ctx context.Context) (string, []any, error) {
		id, err := o.client.OwnerOf(ctx, path)
		if err == nil && id == "" {
			err = errors.New(path + " belongs to no installed package; what put it there has to take it away")
		}
		return "RemovePackages", []any{uint64(0), []string{id}, false, true}, err
	})
}

// begin returns when PackageKit has taken the operation, which then goes on.
func (o *Operations) begin(ctx context.Context, op Operation, prepare func(context.Context) (string, []any, error)) error {
	if err := o.turn.Take(); errors.Is(err, turn.ErrTaken) {
		return ErrBusy
	} else if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, queryTime)
	defer cancel()
	defer context.AfterFunc(o.turn.Context, cancel)()
	t, err := o.start(ctx, prepare)
	if err != nil {
		o.turn.GiveBack()
		return err
	}
	o.log.Info("packages change", "removes", op.Removes, "uuid", op.UUID)
	go func() {
		err := o.follow(t, op)
		o.log.Info("packages have changed", "removes", op.Removes, "uuid", op.UUID, "err", err)
		o.turn.End(func() { o.report.Done(op, err) })
	}()
	return nil
}

func (o *Operations) start(ctx context.Context, prepare func(context.Context) (string, []any, error)) (*transaction, error) {
	method, args, err := prepare(ctx)
	if err != nil {
		return nil, err
	}
	t, err := o.client.begin(ctx)
	if err != nil {
		return nil, err
	}
	if err := t.call(ctx, method, args...); err != nil {
		t.cancel() // it may have begun for all that
		t.close()
		return nil, err
	}
	return t, nil
}

// follow reports the operation until it is over.
func (o *Operations) follow(t *transaction, op Operation) error {
	defer t.close()
	var p progress
	each := func(said *transcript) {
		if phase, percent, further := p.take(said, op.Removes); further {
			o.report.Progress(op, phase, percent)
		}
	}
	err := t.wait(o.turn.Context, o.client.silence, each)
	if o.turn.Context.Err() == nil || t.said.over() {
		return err
	}
	if t.cancel() { // and it gets a moment to be over
		ctx, cancel := context.WithTimeout(context.Background(), cancelTime)
		defer cancel()
		t.wait(ctx, cancelTime, nil)
	}
	return errStopping
}

// progress makes what PackageKit says monotonic: the phase does not go back, nor
// the percentage within a phase.
type progress struct {
	phase   Phase
	percent uint32
}

// take says whether the operation is further than it was.
func (p *progress) take(said *transcript, removes bool) (Phase, uint32, bool) {
	phase := phaseOf(said.status, removes)
	before := *p
	switch {
	case phase == 0 || phase < p.phase:
	case phase > p.phase:
		*p = progress{phase, said.percent}
	default:
		p.percent = max(p.percent, said.percent)
	}
	return p.phase, p.percent, *p != before
}

func phaseOf(status uint32, removes bool) Phase {
	switch {
	case removes && status == statusRemove:
		return Uninstalling
	case removes:
		return 0
	case status == statusDownload:
		return Downloading
	case status == statusInstall:
		return Installing
	}
	return 0
}
