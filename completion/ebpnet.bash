# bash completion for ebpnet: the command itself says what may come next.
# Sourced by bash-completion from its completions directory, or by hand.

_ebpnet() {
	local cur=${COMP_WORDS[COMP_CWORD]}
	local -a words=("${COMP_WORDS[@]:0:COMP_CWORD}")
	if [[ $cur == -* ]]; then
		words+=("$cur")
	fi
	mapfile -t COMPREPLY < <(compgen -W \
		"$("${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur")
}

# Where ebpnet has nothing to say, file names: many arguments are paths.
complete -o bashdefault -o default -F _ebpnet ebpnet
