package concierge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/auberge-vm/auberge/concierge/vmlog"
	"github.com/auberge-vm/auberge/guestlink"
	"github.com/auberge-vm/auberge/guestlink/maitred"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vsock"
)

const (
	// maxLogReply bounds what GetVmLogs answers, in bytes. Everybody on the bus
	// waits while a long message passes.
	maxLogReply = 2 << 20
	// consoleTail is how many lines of the console go into the log when a VM
	// ends by itself.
	consoleTail = 100
	// logTimeout bounds what the host's own lines may cost a VM.
	logTimeout = 5 * time.Second
)

func (s *Service) logPath(k key) string {
	return filepath.Join(s.cfg.StateDir, "logs", ownerDir(k.uid, k.label), fileName(k.name)+".log")
}

// openLog gives a VM its log. What else there is of the VM does not depend on
// it.
func (s *Service) openLog(v *vm) {
	if v.diary == nil {
		v.diary = s.logs.Open(s.logPath(v.key), v.log)
	}
}

// collect opens the VM's log and hears from now on what the guest logs.
func (s *Service) collect(v *vm) {
	s.openLog(v)
	s.boundLogs(v)
	if v.info().Status == pb.VmStatus_VM_STATUS_STARTING {
		v.note(vmlog.Info, "the VM is starting, with the CID %d", v.cid)
	}
	l, err := s.endpoint(v.machine, vsock.PortLogCollector)
	if err != nil {
		v.log.Error("the guest's logs are not heard", "err", err)
		return
	}
	v.collector = maitred.Collect(l, s.sinkOf(v.diary), v.log)
}

// sinkOf turns what guests send into records of a log.
func (s *Service) sinkOf(l *vmlog.Log) guestlink.LogSink {
	return func(ctx context.Context, kernel bool, said []guestlink.LogRecord) error {
		// A service that ends makes nobody wait: what is written must be
		// answered, or the guest sends it to the next service again.
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(s.quit, cancel)()
		source := vmlog.User
		if kernel {
			source = vmlog.Kernel
		}
		records := make([]vmlog.Record, 0, len(said))
		for _, r := range said {
			records = append(records, vmlog.Record{Source: source, Severity: vmlog.Severity(r.Severity), Time: r.Time, Content: r.Content})
		}
		return l.Collect(ctx, records)
	}
}

// closeLog ends the collector and gives the log back. The files stay.
func (v *vm) closeLog() {
	v.closeCollector()
	if v.diary != nil {
		v.diary.Close()
		v.diary = nil
	}
}

func (v *vm) closeCollector() {
	if v.collector != nil {
		v.collector.Close()
		v.collector = nil
	}
}

// note writes a line of the host's into the VM's log, once it has one.
func (v *vm) note(severity vmlog.Severity, format string, args ...any) {
	if v.diary == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), logTimeout)
	defer cancel()
	v.diary.Append(ctx, vmlog.Record{Source: vmlog.Host, Severity: severity, Time: time.Now(), Content: fmt.Appendf(nil, format, args...)})
}

// noteAside is note for others than the VM's own goroutine.
func (s *Service) noteAside(v *vm, severity vmlog.Severity, text string) {
	l := s.logs.Open(s.logPath(v.key), v.log)
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), logTimeout)
	defer cancel()
	l.Append(ctx, vmlog.Record{Source: vmlog.Host, Severity: severity, Time: time.Now(), Content: []byte(text)})
}

// noteEnd writes how a VM has ended. What a guest says last, in a panic, never
// comes through the collector, so that an end which nobody asked for is told
// with the end of the console.
func (v *vm) noteEnd(e vmm.Exit) {
	v.closeCollector()
	severity := vmlog.Info
	if e.Reason != vmm.ExitGuest && e.Reason != vmm.ExitStopped {
		severity = vmlog.Error
	}
	if v.diary != nil && !v.stopAsked() {
		var records []vmlog.Record
		for l := range strings.Lines(vmm.LastLines(e.Console, consoleTail)) {
			records = append(records, vmlog.Record{Source: vmlog.Console, Severity: vmlog.Info, Time: e.Time, Content: []byte(l)})
		}
		ctx, cancel := context.WithTimeout(context.Background(), logTimeout)
		defer cancel()
		v.diary.Append(ctx, records...)
	}
	message := cmp.Or(e.Message, "nothing was left that tells why")
	v.note(severity, "the VM has ended: %s", message)
}

// noteGone writes how a VM has ended that was found so.
func (s *Service) noteGone(v *vm, e vmm.Exit) {
	s.openLog(v)
	v.noteEnd(e)
}

// noteFailure writes why a VM did not start, when it got as far as to run.
func (v *vm) noteFailure(err error) {
	v.closeCollector()
	if v.machine == nil {
		return
	}
	// The error's further lines are the console's, which comes in full.
	reason, _, _ := strings.Cut(err.Error(), "\n")
	severity := vmlog.Error
	if v.stopAsked() {
		severity = vmlog.Info
	}
	v.note(severity, "the VM did not start: %s", strings.TrimSuffix(reason, "; last lines of the guest's console:"))
	if v.machineEnded() {
		v.noteEnd(v.machine.Exit())
	}
}

func (v *vm) stopAsked() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.asked
}

// GetVmLogs returns the end of a VM's log, oldest line first; the VM need not
// run.
func (s *Service) GetVmLogs(ctx context.Context, sub policy.Subject, req *pb.GetVmLogsRequest) (*pb.GetVmLogsResponse, error) {
	if err := policy.CheckName(req.Name); err != nil {
		return nil, err
	}
	l := s.logs.Open(s.logPath(keyOf(sub.Owner, req.Name)), s.log)
	defer l.Close()
	text, err := l.Tail(ctx, maxLogReply, "OpenVmLogs gives all of them")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// Not of the own interface's kinds: this contract's error is Failed.
		return nil, errors.New(noLog(sub, req.Name))
	case err != nil:
		s.log.Error("read a VM's log", "vm", req.Name, "owner", sub.Owner.Word, "err", err)
		return nil, fmt.Errorf("the log of VM %q cannot be read: %w", req.Name, err)
	}
	return &pb.GetVmLogsResponse{Log: text}, nil
}

func noLog(sub policy.Subject, name string) string {
	return fmt.Sprintf("VM %q of owner %s has no log: it was never started, or was destroyed", name, sub.Owner.Word)
}

// removeLog removes the log of a VM whose disk is destroyed.
func (s *Service) removeLog(ctx context.Context, sub policy.Subject, name string) {
	if err := s.logs.Remove(ctx, s.logPath(keyOf(sub.Owner, name)), s.log); err != nil {
		s.log.Error("remove a VM's log", "vm", name, "owner", sub.Owner.Word, "err", err)
	}
}

// LogOptions are those of OpenVmLogs.
type LogOptions struct {
	// Follow goes on with what comes, also over the VM's end and next start.
	Follow bool
	// Lines is how many of the last lines to begin with, zero for all.
	Lines uint32
}

// OpenVmLogs returns the reading end of a pipe with the VM's log in it. The
// writing end is closed when everything is written, or with Follow when the
// log is removed or the service ends.
func (s *Service) OpenVmLogs(ctx context.Context, sub policy.Subject, name string, o LogOptions) (*os.File, error) {
	if err := policy.CheckName(name); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	uid := sub.Caller.UID
	if err := s.logPipes.take(uid); err != nil {
		return nil, fmt.Errorf("open the log of VM %q: %w", name, err)
	}
	l := s.logs.Open(s.logPath(keyOf(sub.Owner, name)), s.log)
	done := func() {
		l.Close()
		s.logPipes.give(uid)
	}
	r, err := l.Reader(ctx, o.Lines)
	if err != nil {
		done()
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %s", ErrNotFound, noLog(sub, name))
		}
		return nil, fmt.Errorf("open the log of VM %q: %w", name, err)
	}
	f, err := s.startPipe(r, o.Follow, done)
	if err != nil {
		r.Close()
		done()
		return nil, fmt.Errorf("open the log of VM %q: %w", name, err)
	}
	return f, nil
}
