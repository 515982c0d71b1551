package dbus

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/auberge-vm/auberge/policy"
)

// A rule is what a method asks of those who call it.
type rule struct {
	right policy.Right
	// watch is set for the method that lets an administrator hear of
	// everybody's VMs, and others of their own.
	watch bool
}

// maxAudited is how much of what a caller wrote goes into a line of the log.
const maxAudited = 64

// everybody stands for the owner in the log when a call is about all VMs.
const everybody = "everybody"

// authorize says whether the caller has the right that a method needs, and
// whose VMs the owner word of its request means. Where no word is asked for,
// the owner is the caller. It may take as long as somebody needs to type a
// password, and holds up nobody but this caller.
func (c *call) authorize(ctx context.Context, p *peer, r rule, word string) (policy.Subject, error) {
	caller := p.caller
	if r.right == policy.RightDaemon {
		return c.authorizeDaemon(caller, word)
	}
	if r.right != policy.RightOwn && r.right != policy.RightAdmin {
		word = ""
	}
	// What the administrator's right was asked for, empty when it was not.
	asked := ""
	var owner policy.Owner
	var err error
	if r.right == policy.RightAdmin {
		asked = cmp.Or(word[:min(len(word), maxAudited)], everybody)
		err = c.manage(ctx, p)
	}
	if err == nil {
		owner, err = policy.ResolveOwner(caller, word, func() error {
			if r.right == policy.RightAdmin {
				return nil
			}
			asked = word
			return c.manage(ctx, p)
		}, c.session.server.opts.UserExists)
	}
	subject := policy.Subject{Caller: caller, Owner: owner}
	switch {
	case err != nil:
	case r.right == policy.RightAdmin:
	case r.right == policy.RightSelf && (caller.UID == 0 || r.watch && c.watches(ctx, p)):
		asked, subject.Everybody = everybody, true
	case r.right == policy.RightOwn && asked == "", r.right == policy.RightSelf:
		err = c.use(ctx, p)
	case !r.right.Known():
		err = fmt.Errorf("%w: nobody has the right %q", policy.ErrDenied, r.right)
	}
	if asked != "" {
		c.audit(ctx, caller, asked, err)
	}
	return subject, err
}

// authorizeDaemon lets Auberge's daemons through, nobody else, and reads the
// owner that they name as daemons do. Where none is named it is the caller.
func (c *call) authorizeDaemon(caller policy.Caller, word string) (policy.Subject, error) {
	owner := policy.Owner{UID: caller.UID, Word: strconv.FormatUint(uint64(caller.UID), 10), All: true}
	if !slices.Contains(c.session.server.opts.DaemonUIDs, caller.UID) {
		return policy.Subject{Caller: caller, Owner: owner}, fmt.Errorf("%w: this is for Auberge's daemons only", policy.ErrDenied)
	}
	var err error
	if word != "" {
		owner, err = policy.DaemonOwner(word)
	}
	return policy.Subject{Caller: caller, Owner: owner}, err
}

// use fails for callers who may have no VMs. Without polkit everybody may;
// root does not depend on it, or VMs could not be stopped when the machine
// goes down.
func (c *call) use(ctx context.Context, p *peer) error {
	if c.session.polkit == nil || p.caller.UID == 0 {
		return nil
	}
	v, err := c.session.polkit.usual(ctx, p)
	if err == nil && !v.yes && v.challenge && c.interactive() {
		v, err = c.session.polkit.ask(ctx, p, policy.ActionUse, true)
	}
	return v.refusal(err, c.session.server.program, policy.ActionUse, "virtual machines are for users who sit at this machine, and for members of the group auberge")
}

// manage fails for callers without the administrator's right. The answer is
// never kept.
func (c *call) manage(ctx context.Context, p *peer) error {
	const what = "only an administrator may do this, or act on another user's VMs"
	if p.caller.UID == 0 {
		return nil
	}
	if c.session.polkit == nil {
		return fmt.Errorf("%w: %s", policy.ErrDenied, what)
	}
	v, err := c.session.polkit.ask(ctx, p, policy.ActionManageOthers, c.interactive())
	return v.refusal(err, c.session.server.program, policy.ActionManageOthers, what)
}

// watches says whether a caller hears of everybody's VMs: no password is asked
// for that.
func (c *call) watches(ctx context.Context, p *peer) bool {
	if c.session.polkit == nil {
		return false
	}
	v, err := c.session.polkit.ask(ctx, p, policy.ActionManageOthers, false)
	return err == nil && v.yes
}

// interactive says whether the caller agrees to be asked for a password.
func (c *call) interactive() bool { return c.flags&flagInteractive != 0 }

// audit writes one line about a use of the administrator's right, whatever
// level of importance the log is restricted to.
func (c *call) audit(ctx context.Context, caller policy.Caller, owner string, denied error) {
	r := slog.NewRecord(time.Now(), slog.LevelInfo, "administrator's right", 0)
	r.AddAttrs(
		slog.Bool("audit", true),
		slog.String("uid", strconv.FormatUint(uint64(caller.UID), 10)), slog.String("name", caller.Name),
		slog.String("method", c.iface+"."+c.member), slog.String("owner", owner),
		slog.Bool("allowed", denied == nil))
	if denied != nil {
		r.AddAttrs(slog.String("reason", denied.Error()))
	}
	if err := c.session.server.log.Handler().Handle(ctx, r); err != nil {
		c.session.server.log.Error("can't write a line of the audit", "err", err)
	}
}
