package concierge

import (
	"fmt"
	"log/slog"
	"math"
	"os/user"
	"slices"
	"strconv"
	"strings"
)

// Unlimited is a limit that is none.
const Unlimited = math.MaxUint64

// Limits are what one user may have, all labels together.
type Limits struct {
	// VMs is how many may run at a time, starting and stopping ones included.
	VMs uint64
	// Memory is what the VMs that run may have in all, in bytes.
	Memory uint64
	// Disk is the size of all disk images, as their guests see them, in bytes.
	Disk uint64
	// Logs is how much the logs of VMs may take that do not run, in bytes.
	Logs uint64
}

// NoLimits limit nothing.
func NoLimits() Limits { return Limits{Unlimited, Unlimited, Unlimited, Unlimited} }

// A Quota tells what a user may have.
type Quota struct {
	// Default holds for everybody whom no rule names.
	Default Limits
	Rules   []QuotaRule
	// Where says where an administrator changes it.
	Where string
}

// A QuotaRule changes some limits for a user, or for a group whose name begins
// with "@".
type QuotaRule struct {
	Who string
	set func(*Limits)
}

// For returns the limits of a user. Rules for groups come before rules for
// users, and later ones win. Names are those of the machine's own files: what
// asks other sources is C, of which the daemons have none.
func (q *Quota) For(uid uint32) Limits {
	if q == nil {
		return NoLimits()
	}
	l := q.Default
	if len(q.Rules) == 0 {
		return l
	}
	who := strconv.FormatUint(uint64(uid), 10)
	names := []string{who}
	var groups []string
	if u, err := user.LookupId(who); err == nil {
		names = append(names, u.Username)
		ids, _ := u.GroupIds() // a user whose groups are not known is in none
		for _, id := range ids {
			groups = append(groups, "@"+id)
			if g, err := user.LookupGroupId(id); err == nil {
				groups = append(groups, "@"+g.Name)
			}
		}
	}
	for _, among := range [][]string{groups, names} {
		for _, r := range q.Rules {
			if slices.Contains(among, r.Who) {
				r.set(&l)
			}
		}
	}
	return l
}

// Check warns of rules with names that this machine's files do not have.
func (q *Quota) Check(log *slog.Logger) {
	for _, r := range q.Rules {
		if name, ok := strings.CutPrefix(r.Who, "@"); ok {
			if _, err := user.LookupGroup(name); err != nil {
				if _, err := user.LookupGroupId(name); err != nil {
					log.Warn("a quota is for a group that /etc/group does not have, and holds for nobody: write a line with the uid for each user of a directory", "group", name)
				}
			}
			continue
		}
		if _, err := user.Lookup(r.Who); err != nil {
			if _, err := user.LookupId(r.Who); err != nil {
				if _, err := strconv.ParseUint(r.Who, 10, 32); err == nil {
					continue // of a directory, perhaps
				}
				log.Warn("a quota is for a user whom /etc/passwd does not have, and holds for nobody: write the uid of a user of a directory", "user", r.Who)
			}
		}
	}
}

// where says where an administrator changes the limits.
func (q *Quota) where() string {
	if q == nil || q.Where == "" {
		return "the options of vm_concierge"
	}
	return q.Where
}

// ParseQuotaRule reads "WHO:vms=4,memory=8G,disk=100G,logs=1G", where WHO is a
// user name, a uid, or a group with an "@" before it.
func ParseQuotaRule(text string) (QuotaRule, error) {
	bad := func(why string) (QuotaRule, error) {
		return QuotaRule{}, fmt.Errorf("quota %q: %s; write USER:vms=4,memory=8G,disk=100G,logs=1G, with @GROUP or a uid in place of USER", text, why)
	}
	at := strings.LastIndex(text, ":")
	r := QuotaRule{Who: strings.TrimSpace(text[:max(at, 0)])}
	if r.Who == "" || r.Who == "@" {
		return bad("it does not say for whom it is")
	}
	var changes []func(*Limits)
	for part := range strings.SplitSeq(text[at+1:], ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok {
			return bad(fmt.Sprintf("%q has no value", part))
		}
		var field func(*Limits) *uint64
		parse := ParseLimitBytes
		switch strings.TrimSpace(name) {
		case "vms":
			field, parse = func(l *Limits) *uint64 { return &l.VMs }, ParseLimit
		case "memory":
			field = func(l *Limits) *uint64 { return &l.Memory }
		case "disk":
			field = func(l *Limits) *uint64 { return &l.Disk }
		case "logs":
			field = func(l *Limits) *uint64 { return &l.Logs }
		default:
			return bad(fmt.Sprintf("there is no limit %q", name))
		}
		n, err := parse(strings.TrimSpace(value))
		if err != nil {
			return bad(fmt.Sprintf("%s: %v", name, err))
		}
		changes = append(changes, func(l *Limits) { *field(l) = n })
	}
	r.set = func(l *Limits) {
		for _, change := range changes {
			change(l)
		}
	}
	return r, nil
}

// unlimitedWord is how a limit that is none is written.
const unlimitedWord = "unlimited"

// ParseLimit reads a number, or "unlimited".
func ParseLimit(text string) (uint64, error) {
	if text == unlimitedWord {
		return Unlimited, nil
	}
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("%q is neither a number nor %q", text, unlimitedWord)
	}
	return n, nil
}

// ParseLimitBytes reads a number of bytes with an optional suffix K, M, G or T
// (powers of 1024), or "unlimited".
func ParseLimitBytes(text string) (uint64, error) {
	if text == unlimitedWord {
		return Unlimited, nil
	}
	digits, shift := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(text), "B"), "I"), 0
	for i, suffix := range []string{"K", "M", "G", "T"} {
		if rest, ok := strings.CutSuffix(digits, suffix); ok {
			digits, shift = rest, 10*(i+1)
			break
		}
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is neither a number of bytes (with K, M, G or T after it) nor %q", text, unlimitedWord)
	}
	return n << shift, nil
}

// bytesWord says a number of bytes in the unit that divides it.
func bytesWord(n uint64) string {
	if n == Unlimited {
		return unlimitedWord
	}
	for i, unit := range []string{" TiB", " GiB", " MiB", " KiB"} {
		if size := uint64(1) << (10 * (4 - i)); n >= size {
			if n%size == 0 {
				return strconv.FormatUint(n/size, 10) + unit
			}
			return fmt.Sprintf("%.1f%s", float64(n)/float64(size), unit)
		}
	}
	return strconv.FormatUint(n, 10) + " bytes"
}

// overQuota is the refusal of what exceeds a limit.
func (s *Service) overQuota(uid uint32, limit, what string) error {
	return fmt.Errorf("%w: %s (%s of uid %d; an administrator changes it in %s, for everybody or by a line for one user)",
		ErrQuota, what, limit, uid, s.cfg.Quota.where())
}

// ErrQuota is wrapped by every refusal of what exceeds a user's quota.
var ErrQuota = &kind{"over quota", "QuotaExceeded"}
