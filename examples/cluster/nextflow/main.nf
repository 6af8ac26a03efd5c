// A Nextflow module in the style of nf-core: one task per shard.
//
// Not run in the tests of Lobule: only its structure is checked. All tasks write into one results folder, which
// is the absolute path of a folder that every machine sees: the shards share the estimated work and the engine
// settings in it. Without such a folder, use one task with `--shard 1/1`. A task does not fail if single cases
// fail (--allow-failed); they are listed in results.csv.
process LOBULE_SCAN {
    tag "${meta.id} ${shard}/${shards}"
    label 'process_high'

    container 'registry.example/lobule:0.1.0'

    input:
    tuple val(meta), path(bundle), path(cohort), val(results), val(shard), val(shards)

    output:
    tuple val(meta), val(results), emit: results
    path 'versions.yml', emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    """
    lobule scan ${bundle} ${cohort} --out ${results} --shard ${shard}/${shards} --allow-failed ${args}

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        lobule: \$(lobule --version | cut -d' ' -f2)
    END_VERSIONS
    """

    stub:
    """
    touch versions.yml
    """
}
