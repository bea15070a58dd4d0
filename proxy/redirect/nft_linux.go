package redirect

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Apply makes the network namespace's rules those of c, in one transaction:
// there is no moment at which some are missing, and whatever was in our
// table before is gone. Applying c again changes nothing.
func Apply(c Config) error {
	if err := c.Validate(); err != nil {
		return fmt.Errorf("redirect: %w", err)
	}
	nft, err := open()
	if err != nil {
		return err
	}
	t := replaceTable(nft)
	// Jump targets first: the kernel resolves names as it reads.
	addRules(nft, nft.AddChain(&nftables.Chain{Name: exemptChain, Table: t}), exemptRules(c))
	addRules(nft, nft.AddChain(&nftables.Chain{
		Name: redirectChain, Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	}), redirectRules(c))
	addRules(nft, nft.AddChain(&nftables.Chain{
		Name: blockChain, Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
	}), blockRules(c))
	return commit(nft, "install rules")
}

// Remove takes our table away, if it is there.
func Remove() error {
	nft, err := open()
	if err != nil {
		return err
	}
	// Only what exists can be deleted.
	nft.DelTable(nft.AddTable(table()))
	return commit(nft, "remove rules")
}

// ackBuffer has room for all acknowledgements of a transaction, which the
// kernel sends before any can be read. It is a wish: the node may grant less.
const ackBuffer = 1 << 20

func open() (*nftables.Conn, error) {
	nft, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error { return c.SetReadBuffer(ackBuffer) }))
	if err != nil {
		return nil, fmt.Errorf("redirect: open netlink: %w", err)
	}
	return nft, nil
}

func table() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
}

// replaceTable begins a transaction with our table, empty. A flush would
// leave chains, and those of others, behind.
func replaceTable(nft *nftables.Conn) *nftables.Table {
	t := nft.AddTable(table())
	nft.DelTable(t)
	return nft.AddTable(t)
}

// commit sends the transaction. The kernel does all of it or nothing.
func commit(nft *nftables.Conn, doing string) error {
	err := asNetAdmin(nft.Flush)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("redirect: %s: %w: CAP_NET_ADMIN in the pod's network namespace is needed", doing, err)
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT):
		return fmt.Errorf("redirect: %s: %w: the node's kernel lacks nf_tables or one of nft_chain_nat, nft_redir, nft_ct, nft_reject_inet; load them, or choose explicit mode", doing, err)
	default:
		return fmt.Errorf("redirect: %s: %w", doing, err)
	}
}
